"""What several commands share: flags, and how the flags become a model, options and a fact."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.errors import NotPreparedError, RequestError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmedit.compare.candidates import Entrant
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.registry import LoadedMethod
    from lmedit.types import Request

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def flags(*decorators: Decorator) -> Decorator:
    """Several click options as one decorator, shown in the order given."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_flags = flags(
    click.option("-m", "--model", default="demo", envvar="LMEDIT_MODEL", show_default=True,
                 show_envvar=True, help="A world, a model folder, or a hub id."),
    click.option("--device", default="auto", show_default=True,
                 help="cpu, cuda, mps, ...; map: spread over all devices, by accelerate."),
    click.option("--dtype", default="auto", show_default=True,
                 type=click.Choice(["auto", "float32", "bfloat16", "float16", "float64"]),
                 help="The model's number type; auto: the checkpoint's."),
    click.option("--download", is_flag=True, help="Allow fetching from the hub."),
)  # fmt: skip

method_flags = flags(
    click.option("-o", "--option", "pairs", nargs=2, multiple=True, metavar="KEY VALUE",
                 help="An option of the method (METHOD.KEY where several run); or: preset NAME; "
                 "or @FILE, which lmedit tune wrote."),
    click.option("--plugin", "plugins", multiple=True, metavar="FILE.py",
                 type=click.Path(path_type=Path), help="A method from one file; repeatable."),
    click.option("--observe", "observers", multiple=True, metavar="NAME|FILE.py",
                 help="An observer that watches the hooks (docs/hooks.md); repeatable."),
    click.option("--seed", type=int, default=0, show_default=True,
                 help="Of everything random."),
    click.option("--corpus", "corpora", multiple=True, metavar="[METHOD=]NAME",
                 help="What to prepare on: text (a world, a file or folder, wikitext, wikipedia), "
                 "statistics (stats:ID), or cases where a method is trained on them. Default: the "
                 "model's own."),
)  # fmt: skip

fact_flags = flags(
    click.option("--prompt", help="The prompt, with {} where the subject stands."),
    click.option("--subject", help="The subject of the fact."),
    click.option("--target", help="The new answer."),
    click.option("--target-true", help="Today's answer; default: what the model says now."),
    click.option("--fact", type=click.File(encoding="utf-8"),
                 help="The fact as JSON: prompt, subject, target_new[, target_true]; - is stdin."),
)  # fmt: skip

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def note(text: str) -> None:
    """A remark for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def fact_line(facts: Mapping[str, Any]) -> str:
    """The fact of a patch's *facts*: the filled prompt and the new answer; or its adapter."""
    request = facts.get("request", {})
    if not request:
        return f"adapter {facts['adapter']}" if "adapter" in facts else "no request"
    text = str(request.get("prompt", "")).replace("{}", str(request.get("subject", "")))
    return f"{text} -> {request.get('target_new')}"


def quiet_hub() -> None:
    """Let the hub's library show its own progress on terminals only, and no warnings."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def load_model(model: str, device: str, dtype: str, *, download: bool) -> Lm:
    """The model of the flags; the hub library's own progress is shown on terminals only."""
    from lmedit.models import load_lm

    quiet_hub()
    return load_lm(model, device=device, dtype=dtype, download=download)


def load_methods(
    names: Sequence[str], plugins: Sequence[Path], observers: Sequence[str] = ()
) -> list[LoadedMethod]:
    """The named methods, those of plugin files among them; none named: all that work.

    A note says which do not. Each is watched by *observers*.
    """
    from lmedit.observers import observed
    from lmedit.registry import resolve

    methods = resolve(names, plugins, lambda why: note(f"left out: {why}"))
    observed(methods, observers)
    return methods


def editors_for(
    lm: Lm,
    methods: Sequence[LoadedMethod],
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int,
    corpora: Sequence[str] = (),
    download: bool = False,
    lenient: bool = False,
) -> list[Editor]:
    """Editors of *methods* for *lm*, from what was prepared; statistics are made on the spot.

    A method that is trained on cases is never trained here: that takes long, and has a command.
    Raises `NotPreparedError` where nothing was prepared and no text is named; if *lenient*, such
    a method is left out, with a note.
    """
    from lmedit.options import build_options, for_methods
    from lmedit.pipeline import prepare, ready
    from lmedit.preparation import prepared_path

    given = for_methods(pairs, [loaded.name for loaded in methods])
    note_other_models(lm, pairs)
    options = {m.name: build_options(m.method, given[m.name], lm, seed) for m in methods}
    material = materials(lm, methods, corpora, download=download)
    editors = []
    for loaded in methods:
        chosen, found = options[loaded.name], material[loaded.name]
        if found is None or loaded.method.prepares_on == "cases":
            try:
                editors.append(ready(loaded, lm, chosen, found))
            except NotPreparedError as error:
                if not lenient:
                    raise
                note(f"left out: {error}")
            continue
        if not prepared_path(loaded, lm, chosen, found).is_file():
            note(f"{loaded.name}: preparing on {found.name}, once for this model")
        editors.append(prepare(loaded, lm, chosen, found))
    return editors


def note_other_models(lm: Lm, pairs: Sequence[tuple[str, str]]) -> None:
    """Say of each options file (``-o @FILE``) that was tuned on other weights, on which."""
    from lmedit.options import FILE_KEY, read_tuned

    for path in (Path(value) for key, value in pairs if key == FILE_KEY):
        for method, entry in read_tuned(path).items():
            evidence = entry.get("evidence", {})
            if evidence.get("model_digest", lm.digest) != lm.digest:
                note(f"{path}: {method} was tuned on other weights ({evidence.get('model')})")


def materials(
    lm: Lm, methods: Sequence[LoadedMethod], corpora: Sequence[str], *, download: bool = False
) -> dict[str, Any]:
    """What each method is prepared on: NAME for all that take text, METHOD=NAME for one.

    None where nothing was named; but a method that takes text is given the model's own, if it has
    one. Raises `UnknownNameError` for a method that is not among them.
    """
    from lmedit.api.editors import text_of
    from lmedit.cases import load_cases

    kinds = {loaded.name: loaded.method.prepares_on for loaded in methods}
    named: dict[str, str] = {}
    for text in corpora:
        method, equals, name = text.partition("=")
        if equals and method not in kinds:
            raise UnknownNameError("method", method, kinds, f"--corpus {text}: ")
        fitting = [m for m, kind in kinds.items() if kind == "text"]
        named |= {method: name} if equals else dict.fromkeys(fitting, text)
    return {
        m: None if kind is None
        else text_of(named.get(m), lm, download=download) if kind == "text"
        else load_cases(named[m], download=download) if m in named else None
        for m, kind in kinds.items()
    }  # fmt: skip


def at_random_layer(
    lm: Lm,
    loaded: LoadedMethod,
    pairs: Sequence[tuple[str, str]],
    prepared: Callable[[Sequence[LoadedMethod], Sequence[tuple[str, str]]], list[Editor]],
    seed: int,
) -> Entrant:
    """The baseline that edits each case at a random layer; *prepared* is `editors_for`."""
    from lmedit.compare.candidates import random_layer

    own = [(key, value) for key, value in pairs
           if "." not in key or key.startswith(f"{loaded.name}.")]  # fmt: skip

    def at_layer(layer: int) -> Editor:
        return prepared([loaded], [*own, (f"{loaded.name}.layer", str(layer))])[0]

    return random_layer(loaded.name, lm, at_layer, seed)


def fact_of(
    lm: Lm, prompt: str | None, subject: str | None, target: str | None, target_true: str | None,
    fact: Any,
) -> Request:  # fmt: skip
    """The request that the fact flags describe; raises `RequestError` with one clear line."""
    from lmedit.models import as_template
    from lmedit.types import request_from

    values: dict[str, Any] = {}
    if fact is not None:
        try:
            values = json.load(fact)
        except ValueError as error:
            raise RequestError(f"--fact is not JSON ({error}); see lmedit edit --help") from error
        if not isinstance(values, dict):
            raise RequestError("--fact must hold one JSON object; see lmedit edit --help")
    flags_given = {
        "prompt": prompt, "subject": subject, "target_new": target, "target_true": target_true
    }  # fmt: skip
    values |= {name: value for name, value in flags_given.items() if value is not None}
    missing = [name for name in ("prompt", "subject", "target_new") if name not in values]
    if missing:
        raise RequestError(f"the fact lacks {', '.join(missing)}; give --prompt, --subject "
                           "and --target, or --fact FILE")  # fmt: skip
    if isinstance(values["prompt"], str) and isinstance(values["subject"], str):
        values["prompt"] = as_template(lm.tokenizer, values["prompt"], values["subject"])
    return request_from(values)
