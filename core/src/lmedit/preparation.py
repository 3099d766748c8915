"""Prepared files: where they are stored, how they are found, and which model they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.errors import ArtifactError, NotPreparedError, OptionError
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.tensors import PREPARED, load_tensors, save_tensors
from lmedit.types import Prepared

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Material

SUFFIX = ".safetensors"
SHIPPED = "lmedit-prepared"
"""A subfolder of a model folder: preparations that come with the model, one file per method."""


def prepared_path(loaded: LoadedMethod, lm: Lm, options: Options, corpus: Material | None) -> Path:
    """The cache file of a preparation. Its name is a digest of everything that determines it."""
    on = corpus.digest if corpus else ""
    return _folder() / f"{_stem(loaded, lm, options)}-{key_of(on=on)[:12]}{SUFFIX}"


def chosen_options(options: Options) -> dict[str, Any]:
    """The options that a preparation depends on, as JSON values."""
    return options.prepared_from()


def find_prepared(
    loaded: LoadedMethod, lm: Lm, options: Options, corpus: Material | None = None
) -> Prepared:
    """Load the stored preparation for these options, from the cache or from the model's folder.

    Without *corpus*, there must be exactly one. Raises `NotPreparedError` with the command to
    run if there is none, and `OptionError` if there are several.
    """
    if corpus is not None:
        paths = [prepared_path(loaded, lm, options, corpus)]
    else:
        paths = sorted(_folder().glob(f"{_stem(loaded, lm, options)}-*{SUFFIX}"))
    found = [load_prepared(path, lm) for path in paths if path.is_file()]
    if not found:
        shipped = shipped_prepared(loaded, lm, options)
        found = [p for p in shipped if corpus is None or p.facts.get("corpus") == corpus.name]
    if not found:
        raise NotPreparedError(
            f"{loaded.name} is not prepared for this model with these options; "
            f"run: lmedit prepare {loaded.name} -m {lm.name} --corpus NAME|FILE"
            f"{_asking_flags(loaded, lm)}"
        )
    if len(found) > 1:
        names = ", ".join(str(prepared.facts.get("corpus")) for prepared in found)
        raise OptionError(
            f"{loaded.name} was prepared on {names}; choose: --corpus {loaded.name}=NAME"
        )
    return found[0]


def _asking_flags(loaded: LoadedMethod, lm: Lm) -> str:
    """The flags that a preparation of *loaded* needs to fit how *lm* is asked."""
    found = asking_key(loaded, lm)
    system = f" --system {lm.chat.system!r}" if lm.chat and lm.chat.system else ""
    chat = f" --chat{system}" if "chat" in found else ""
    return f"{chat} --join none" if "join" in found else chat


def save_prepared(path: Path, prepared: Prepared, base: str) -> None:
    """Write *prepared* together with the digest *base* of its base model."""
    save_tensors(path, PREPARED, prepared.tensors, {"base": base, "facts": dict(prepared.facts)})


def load_prepared(path: Path, lm: Lm) -> Prepared:
    """Read a `Prepared`. Raises `ArtifactError` if it was made for another base model."""
    tensors, facts = load_tensors(path, PREPARED)
    if facts["base"] != lm.digest:
        raise ArtifactError(
            f"{path} was prepared for base {facts['facts'].get('base', '?')} "
            f"({facts['base'][:12]}), but {lm.name} is {lm.digest[:12]}; prepare again for this "
            "model"
        )
    return Prepared(tensors, facts["facts"])


def _folder() -> Path:
    return cache_folder() / "prepared"


def _stem(loaded: LoadedMethod, lm: Lm, options: Options) -> str:
    key = key_of(
        method=loaded.name,
        version=loaded.version,
        base=lm.digest,
        options=chosen_options(options),
        **asking_key(loaded, lm),
    )
    return f"{loaded.name}-{key[:32]}"


def asking_key(loaded: LoadedMethod, lm: Lm) -> dict[str, Any]:
    """How *lm* is asked, if an editor that is trained on cases depends on it; else empty."""
    if loaded.method.prepares_on != "cases":
        return {}
    found = {"chat": lm.chat.digest if lm.chat else None, "join": lm.join}
    return {name: value for name, value in found.items() if value not in {None, "auto", "space"}}


def shipped_prepared(loaded: LoadedMethod, lm: Lm, options: Options) -> list[Prepared]:
    """The preparation in the model's or its world's folder as a list; empty if options differ."""
    folders = [lm.folder / SHIPPED] if lm.folder else []
    folders += [lm.prepared] if lm.prepared else []
    folders = [] if asking_key(loaded, lm) else folders
    for path in (folder / f"{loaded.name}{SUFFIX}" for folder in folders):
        if path.is_file():
            prepared = load_prepared(path, lm)
            if prepared.facts.get("options") == chosen_options(options):
                return [prepared]
    return []
