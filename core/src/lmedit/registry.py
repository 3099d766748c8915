"""Names without importing; `load(name)`; a broken plugin is a value, not a crash.

Discovery reads the metadata of installed distributions only. A method is imported when it is
loaded, into a plugin manager of its own: defaults, that method, observers. So a call cannot
reach the wrong method, and a broken plugin cannot break another.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.errors import BrokenPluginError, LmeditError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    import pluggy

    from lmedit.types import Method

GROUP = "lmedit.methods"
BLOCK_VARIABLE = "LMEDIT_PLUGINS"
"""Unset: all methods; empty: none; a comma list: only those."""


@dataclass(frozen=True)
class Entry:
    """One method as its distribution announces it; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    paper: str
    module: str
    state: str
    """ok, broken or blocked."""
    reason: str = ""


@dataclass(frozen=True)
class LoadedMethod:
    """A method ready to be called: its own plugin manager and what it says of itself."""

    method: Method
    manager: pluggy.PluginManager
    distribution: str
    version: str

    @property
    def name(self) -> str:
        """The method's name, as on the command line."""
        return self.method.name


def entries() -> list[Entry]:
    """All announced methods by name, broken and blocked ones included; imports none."""
    found: dict[str, list[Entry]] = {}
    for distribution in importlib.metadata.distributions():
        for point in distribution.entry_points.select(group=GROUP):
            found.setdefault(point.name, []).append(_entry(point, distribution))
    return [_one_of(name, found[name]) for name in sorted(found)]


def _entry(
    point: importlib.metadata.EntryPoint, distribution: importlib.metadata.Distribution
) -> Entry:
    metadata = distribution.metadata
    urls = [url.split(",", 1) for url in metadata.get_all("Project-URL") or []]
    papers = [parts[-1].strip() for parts in urls if parts[0].strip().lower() == "paper"]
    reason, state = _why_broken(point.value), "ok"
    if reason:
        state = "broken"
    elif not _allowed(point.name):
        state, reason = "blocked", f"not named in {BLOCK_VARIABLE}"
    return Entry(
        point.name, metadata["Name"], distribution.version, "".join(papers[:1]),
        point.value, state, reason,
    )  # fmt: skip


def _why_broken(module: str) -> str:
    top = module.partition(":")[0].partition(".")[0]
    return "" if importlib.util.find_spec(top) else f"its module {top!r} does not exist"


def _allowed(name: str) -> bool:
    only = os.environ.get(BLOCK_VARIABLE)
    return only is None or name in {part.strip() for part in only.split(",")}


def _one_of(name: str, claims: Sequence[Entry]) -> Entry:
    """The one claim on *name*, or a broken entry that names both distributions."""
    owners = sorted({claim.distribution for claim in claims})
    if len(owners) == 1:
        return claims[0]
    reason = f"the name {name!r} is claimed by {' and '.join(owners)}; uninstall one"
    return Entry(name, ", ".join(owners), "", "", "", "broken", reason)


def load(name: str) -> LoadedMethod:
    """Import the method *name* and register it; raises an error with culprit and remedy."""
    by_name = {entry.name: entry for entry in entries()}
    entry = by_name.get(name)
    if entry is None:
        raise UnknownNameError("method", name, by_name)
    if entry.state != "ok":
        raise BrokenPluginError(f"method {name!r} is {entry.state}: {entry.reason}")
    try:
        module = importlib.metadata.EntryPoint(name, entry.module, GROUP).load()
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(_cannot_load(entry, error)) from error
    return register(module, name=name, distribution=entry.distribution, version=entry.version)


def load_file(path: Path) -> LoadedMethod:
    """Load a method from one Python file, without packaging."""
    if not path.is_file():
        raise BrokenPluginError(f"no plugin file {str(path)!r}; --plugin takes a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BrokenPluginError(f"plugin file {str(path)!r} is not Python; name a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(f"plugin file {path.name!r}: {_last_line(error)}") from error
    return register(module, name=None, distribution=path.name, version="")


def register(
    module: ModuleType | object, *, name: str | None, distribution: str, version: str
) -> LoadedMethod:
    """Put *module* into a plugin manager of its own and let it describe itself.

    *name* is the entry point's, which the method has to bear (law 1); None accepts any.
    """
    import pluggy

    from lmedit import defaults, hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(defaults, "defaults")
    culprit = f"method {name!r} of {distribution}" if name else f"plugin {distribution}"
    try:
        manager.register(module, name or distribution)
        manager.check_pending()
        method = manager.hook.edit_describe()
    except Exception as error:
        raise BrokenPluginError(f"{culprit}: {_last_line(error)}") from error
    _check_method(method, name, culprit)
    return LoadedMethod(method, manager, distribution, version)


def _check_method(method: object, name: str | None, culprit: str) -> None:
    from lmedit.types import Method, Options

    if not isinstance(method, Method):
        raise BrokenPluginError(f"{culprit}: edit_describe must return a Method, not {method!r}")
    if not (isinstance(method.options, type) and issubclass(method.options, Options)):
        raise BrokenPluginError(f"{culprit}: its options must be a class derived from Options")
    if name is not None and method.name != name:
        raise BrokenPluginError(
            f"{culprit}: calls itself {method.name!r}; it must bear its entry point's name"
        )
    try:
        method.options()
    except Exception as error:
        raise BrokenPluginError(f"{culprit}: every option needs a default: {error}") from error


def resolve(names: Sequence[str], files: Sequence[Path] = ()) -> list[LoadedMethod]:
    """Load *names*, where methods out of *files* come first; no names: all that are ok."""
    extra = {loaded.name: loaded for loaded in map(load_file, files)}
    if not names:
        installed = [entry.name for entry in entries() if entry.state == "ok"]
        names = [*extra, *(name for name in installed if name not in extra)]
    return [extra[name] if name in extra else load(name) for name in names]


def check(entry: Entry) -> Entry:
    """The entry after an attempt to load it: still ok, or broken with the reason."""
    if entry.state != "ok":
        return entry
    try:
        load(entry.name)
    except LmeditError as error:
        return Entry(**{**entry.__dict__, "state": "broken", "reason": str(error)})
    return entry


def _cannot_load(entry: Entry, error: BaseException) -> str:
    return (
        f"method {entry.name!r} of {entry.distribution} {entry.version} cannot be loaded: "
        f"{_last_line(error)}; mend or uninstall {entry.distribution}"
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
