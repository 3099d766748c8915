"""Checks of a command's values before any model is loaded, so that bad input fails at once."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.cases import corpus_of
from lmedit.cases.layouts import split_name
from lmedit.cases.load import path_of
from lmedit.errors import ArtifactError, OptionError, UnknownNameError
from lmedit.models import check_layers
from lmedit.models.devices import device_of
from lmedit.options import build_options
from lmedit.stats import PREFIX, SELF, statistics_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod


def check_device(device: str) -> None:
    """Raise `ModelError` if there is no such device."""
    device_of(device)


def check_options(
    methods: Sequence[LoadedMethod],
    several: Sequence[Mapping[str, Mapping[str, Any]]],
    seed: int | None,
    *,
    probing: bool = False,
) -> list[Options]:
    """The options of all *methods*, without a model. Raises `OptionError` for a wrong one,
    and `ArtifactError` if the file of a released editor is missing.

    Each of *several* holds the user's options by method. Without *probing*, options of a probe are
    refused.
    """
    found = []
    for given, loaded in product(several, methods):
        mine = given[loaded.name]
        for name in loaded.method.options.probes if not probing else ():
            if name in mine:
                raise OptionError(
                    f"{loaded.name}: {name} is used only by lmedit locate --probe; remove {name}"
                )
        chosen = build_options(loaded.method, mine, None, seed)
        file = getattr(chosen, "checkpoint", None)
        if isinstance(file, str) and not Path(file).is_file():
            raise ArtifactError(f"no file {file!r}; name a released editor's file")
        found.append(chosen)
    return found


def check_blocks(several: Sequence[Options], model: str, outline: Callable[[], Lm]) -> None:
    """Raise `RequestError` if *model* lacks a layer or the expert that one of *several* names.

    *outline* outlines the model; it is called only if a layer or an expert is given.
    """
    named = [(_layers_of(options), getattr(options, "expert", None)) for options in several]
    check_layers(model, [layer for layers, _ in named for layer in layers])
    if not any(layers or expert is not None for layers, expert in named):
        return
    lm = outline()
    for layers, expert in named:
        for layer in layers:
            lm.mlp_out_path(layer)
        if expert is not None:
            lm.mlp_out(layers[0] if layers else lm.editable[0], expert)


def _layers_of(options: Options) -> list[int]:
    """The blocks that *options* name."""
    matrices = getattr(options, "matrices", None) or {}
    named = [*(getattr(options, name, None) for name in ("layer", "layers")), *matrices.values()]
    return [number for number in _numbers(named) if number is not None]


def _numbers(values: Iterable[Any]) -> list[Any]:
    """The numbers in *values*, which are numbers or sequences of numbers."""
    found: list[Any] = []
    for value in values:
        found += list(value) if isinstance(value, list | tuple) else [value]
    return found


def name_corpora(corpora: Sequence[str], methods: Sequence[LoadedMethod]) -> dict[str, str]:
    """The corpus that the user named for each method.

    NAME is for every method that is prepared on text, METHOD=NAME for one. NAME is also for a
    single method that is trained on cases. The result is empty if no method needs a preparation.
    Raises `UnknownNameError` for another method, and `OptionError` if the method must be named.
    """
    kinds = {loaded.name: loaded.method.prepares_on for loaded in methods}
    alone = [m for m, kind in kinds.items() if kind == "cases" and len(kinds) == 1]
    named: dict[str, str] = {}
    for text in corpora:
        method, equals, name = text.partition("=")
        if not equals:
            takers = [m for m in kinds if kinds[m] == "text"] or alone
            trained = [m for m in kinds if kinds[m] == "cases"]
            if not takers and trained:
                raise OptionError(f"--corpus {text}: name the method, as {trained[0]}={text}")
            named |= dict.fromkeys(takers, text)
        elif method not in kinds:
            raise UnknownNameError("method", method, kinds, f"--corpus {text}: ")
        elif kinds[method] is None:
            raise OptionError(f"--corpus {text}: {method} needs no preparation; remove --corpus")
        else:
            named[method] = name
    return named


def check_corpora(
    named: Mapping[str, str], methods: Sequence[LoadedMethod], *, download: bool
) -> None:
    """Raise `CasesError` or `ArtifactError` if a named corpus does not exist. None is read."""
    for loaded in methods:
        name = named.get(loaded.name)
        if name is None or name == SELF:
            continue
        if loaded.method.prepares_on == "cases":
            path_of(split_name(name)[1])
        elif name.startswith(PREFIX):
            statistics_named(name)
        else:
            corpus_of(name, None, download=download)


def check_readable(flag: str, path: Path | None, *, folder: bool = False) -> None:
    """Raise `OptionError` if the file, or folder, *path* of *flag* does not exist."""
    if path is None or (path.is_dir() if folder else path.is_file()):
        return
    kind = "folder" if folder else "file"
    raise OptionError(f"{flag} {path}: this {kind} does not exist; give its path")
