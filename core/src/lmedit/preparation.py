"""Prepared files: where they are stored, how they are found, and which model they belong to."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lmedit.errors import ArtifactError, NotPreparedError, OptionError
from lmedit.storage.cache import cache_folder, key_of
from lmedit.storage.json_files import read_entries, write_entries
from lmedit.storage.tensors import PREPARED, load_tensors, read_facts, save_tensors
from lmedit.types import Prepared
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Material

SUFFIX = ".safetensors"
SHOWN = 3
"""How many preparations, and how many differences of each, a message names."""
BASES = "bases.json"
"""A file next to shipped preparations: by method, the digest that each depends on."""
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
    loaded: LoadedMethod,
    lm: Lm,
    options: Options,
    corpus: Material | None = None,
    *,
    own: bool = False,
) -> Prepared:
    """Load the preparation to use for these options. This is the only rule that chooses one.

    On a *corpus* that the user named, it is the one on that corpus. If the user named none (*own*,
    or no *corpus*), it is the one that comes with the model; else the one on *corpus*, the model's
    own; else, without *corpus*, the only stored one.

    Raises `NotPreparedError` with the command to run if there is none, and `OptionError` if
    several are stored.
    """
    own = own or corpus is None
    if own and (shipped := shipped_prepared(loaded, lm, options)):
        return shipped[0]
    if corpus is None:
        paths = stored_paths(loaded, lm, options)
    else:
        paths = [prepared_path(loaded, lm, options, corpus)]
    found = [load_prepared(path, lm, options) for path in paths if path.is_file()]
    if not found and corpus is not None and not own:
        shipped = shipped_prepared(loaded, lm, options)
        found = [each for each in shipped if each.facts.get("corpus") == corpus.name]
    if not found:
        raise NotPreparedError(
            f"{loaded.name} is not prepared for this model with these options"
            f"{others_prepared(loaded, lm, options)}; "
            f"run: lmedit prepare {loaded.name} -m {lm.name} --corpus NAME|FILE"
            f"{_model_flags(loaded, lm)}"
        )
    if len(found) > 1:
        names = ", ".join(str(prepared.facts.get("corpus")) for prepared in found)
        raise OptionError(
            f"{loaded.name} was prepared on {names}; choose: --corpus {loaded.name}=NAME"
        )
    return found[0]


def stored_paths(loaded: LoadedMethod, lm: Lm, options: Options) -> list[Path]:
    """The cache files of all preparations with these options, one for each corpus."""
    return sorted(_folder().glob(f"{_stem(loaded, lm, options)}-*{SUFFIX}"))


def _model_flags(loaded: LoadedMethod, lm: Lm) -> str:
    """The flags for a preparation of *loaded* with the number type, chat and joint of *lm*."""
    found = asking_key(loaded, lm)
    system = f" --system {lm.chat.system!r}" if lm.chat and lm.chat.system else ""
    chat = f" --chat{system}" if "chat" in found else ""
    cast = "" if lm.asked_type == "auto" else f" --dtype {lm.asked_type}"
    return f"{cast}{chat}{' --join none' if 'join' in found else ''}"


def others_prepared(loaded: LoadedMethod, lm: Lm, options: Options) -> str:
    """The other preparations, as the middle of a message; empty if there are none.

    They are those of the cache and those that come with the model. For each, it names what
    differs: the model, its number type, options.
    """
    wanted = {"model": lm.name, "number type": lm.dtype_name, **chosen_options(options)}
    found: dict[str, None] = {}
    stored_files = sorted(_folder().glob(f"{loaded.name}-*{SUFFIX}"))
    for path in [*_shipped_paths(loaded, lm), *stored_files]:
        with suppress(ArtifactError, AttributeError, KeyError, TypeError):
            facts = read_facts(path, PREPARED)["facts"]
            stored = {
                "model": facts.get("base"),
                "number type": facts.get("number type", lm.dtype_name),
                **facts.get("options", {}),
            }
            other = [f"{n} {stored[n]}" for n in wanted if stored.get(n) != wanted[n]]
            same = f"other weights or code of {lm.name}"
            found[f"{', '.join(other[:SHOWN]) or same} ({facts.get('corpus')})"] = None
    if not found:
        return ""
    return f" (prepared: {'; '.join(list(found)[:SHOWN])}{'; ...' if len(found) > SHOWN else ''})"


def save_prepared(path: Path, prepared: Prepared, base: str) -> None:
    """Write *prepared* together with the digest *base* of what it depends on in its model."""
    save_tensors(path, PREPARED, prepared.tensors, {"base": base, "facts": dict(prepared.facts)})


def load_prepared(path: Path, lm: Lm, options: Options | None = None) -> Prepared:
    """Read a `Prepared`. Raises `ArtifactError` if it was made for another base model.

    The base is the model's weights, or what *options* say that a preparation depends on.
    """
    tensors, facts = load_tensors(path, PREPARED)
    if not isinstance(facts, dict) or not isinstance(facts.get("base"), str):
        raise ArtifactError(f"{path} names no base model; prepare again")
    if not isinstance(facts.get("facts"), dict):
        raise ArtifactError(f"{path} has no facts; prepare again")
    fits = {lm.digest, lm.identity if options is None else options.prepared_on(lm)}
    if facts["base"] not in fits:
        raise ArtifactError(_of_another(path, facts, lm))
    return Prepared(tensors, facts["facts"])


def _of_another(path: Path, facts: Mapping[str, Any], lm: Lm) -> str:
    return (
        f"{path} was prepared for base {facts['facts'].get('base', '?')} "
        f"({facts['base'][:12]}), but {lm.name} is {lm.digest[:12]}; prepare again for this model"
    )


def _folder() -> Path:
    return cache_folder() / "prepared"


def _stem(loaded: LoadedMethod, lm: Lm, options: Options) -> str:
    key = key_of(
        method=loaded.name,
        version=loaded.version,
        code=loaded.code,
        core=__version__,
        base=options.prepared_on(lm),
        options=chosen_options(options),
        **asking_key(loaded, lm),
    )
    return f"{loaded.name}-{key[:32]}"


def asking_key(loaded: LoadedMethod, lm: Lm) -> dict[str, Any]:
    """The chat and the joint of *lm*, if the method trains on cases; else empty."""
    if loaded.method.prepares_on != "cases":
        return {}
    found = {"chat": lm.chat.digest if lm.chat else None, "join": lm.join}
    return {name: value for name, value in found.items() if value not in {None, "auto", "space"}}


def shipped_prepared(loaded: LoadedMethod, lm: Lm, options: Options) -> list[Prepared]:
    """The preparation in the model's or its world's folder as a list; empty if options differ.

    Beside the files, `BASES` may hold what each depends on in its model (`Options.prepared_on`).
    A world's preparation that does not fit an edited model is left out. Raises `ArtifactError` if
    one in the model's own folder was made for another model.
    """
    if asking_key(loaded, lm):
        return []
    own = lm.folder / SHIPPED if lm.folder else None
    for path in _shipped_paths(loaded, lm):
        folder = path.parent
        tensors, facts = load_tensors(path, PREPARED)
        if facts["facts"].get("options") != chosen_options(options):
            continue
        base = _bases(folder).get(loaded.name)
        wanted = options.prepared_on(lm)
        if base == wanted or (base is None and facts["base"] in {lm.digest, wanted}):
            return [Prepared(tensors, facts["facts"])]
        if folder == own:
            raise ArtifactError(_of_another(path, facts, lm))
    return []


def _shipped_paths(loaded: LoadedMethod, lm: Lm) -> list[Path]:
    """The files of preparations that come with the model: in its own folder, then its world's."""
    folders = (lm.folder / SHIPPED if lm.folder else None, lm.prepared)
    paths = [each / f"{loaded.name}{SUFFIX}" for each in folders if each is not None]
    return [path for path in paths if path.is_file()]


def _bases(folder: Path) -> Mapping[str, Any]:
    path = folder / BASES
    if not path.is_file():
        return {}
    try:
        return read_entries(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); install the model again") from error


def write_bases(folder: Path, bases: Mapping[str, str]) -> None:
    """Write into *folder* the digests that its shipped preparations depend on, by method."""
    write_entries(folder / BASES, {**_bases(folder), **bases})
