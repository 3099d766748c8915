"""Find methods without importing them, and load them. A broken plugin is a value, not a crash.

Discovery reads only the metadata of installed distributions. `load` imports a method and gives
it its own plugin manager: the defaults, the method, a guard around it, and observers. So a call
cannot reach the wrong method, and a broken plugin cannot break another one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lmedit.errors import (
    BrokenPluginError,
    LmeditError,
    RequestError,
    UnknownNameError,
    checks_kinds,
)
from lmedit.guards.hooks import (
    IMPORT_SECONDS,
    at_most,
    guard_of,
    implements,
    last_line,
    one_of_many,
    prints_aside,
)
from lmedit.storage.code import code_digest, file_of
from lmedit.storage.escapes import is_name
from lmedit.storage.installed import declarations_of
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from importlib.metadata import EntryPoint
    from pathlib import Path
    from types import CodeType, ModuleType

    import pluggy

    from lmedit.options import Method
    from lmedit.storage.installed import Declared
    from lmedit.types import Request

GROUP = "lmedit.methods"
BLOCK_VARIABLE = "LMEDIT_PLUGINS"
"""Unset: all methods. Empty: no method. A list with commas: only these methods."""
RESERVED = ("base", "in-context", "retrieve", "model", "schema", "best")
"""Names that no method has: rows of comparisons, entries of options files, `lmedit edit best`."""
NAMES = "a name has letters, digits, hyphens and dots, at most 64"
BUILT_IN = "lmedit:"
"""The prefix of the core's own plugins in a plugin manager."""


@dataclass(frozen=True)
class MethodEntry:
    """One method as its distribution declares it. Nothing of it is imported yet."""

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
    """A method that can be called: its own plugin manager and its description."""

    method: Method
    manager: pluggy.PluginManager
    distribution: str
    version: str
    code: str = ""
    """The digest of its code, if the version does not fix it (`storage.code.code_digest`)."""

    @property
    def name(self) -> str:
        """The method's name, as on the command line."""
        return self.method.name

    @property
    def culprit(self) -> str:
        """The method and its distribution, as error messages name them."""
        return f"method {self.name!r} of {self.distribution}"


def entries() -> list[MethodEntry]:
    """All declared methods by name, also broken and blocked ones. No method is imported."""
    found: dict[str, list[MethodEntry]] = {}
    for distribution, points in declarations_of(GROUP):
        for entry in _entries_of(distribution, points):
            found.setdefault(entry.name, []).append(entry)
    return [_only_claim(name, found[name]) for name in sorted(found)]


def _entries_of(distribution: Declared, points: Iterable[EntryPoint]) -> Iterator[MethodEntry]:
    """The methods that *distribution* declares with *points*."""
    unfit = _why_unfit(distribution.requires)
    urls = [url.split(",", 1) for url in distribution.urls]
    papers = [parts[-1].strip() for parts in urls if parts[0].strip().lower() == "paper"]
    for point in points:
        reason, state = _why_broken(point.value) or unfit, "ok"
        if not is_name(point.name):
            reason = f"{point.name!r:.80} is not a valid name; {NAMES}"
        if reason:
            state = "broken"
        elif not _allowed(point.name):
            state, reason = "blocked", f"{BLOCK_VARIABLE} does not name it"
        own = (point.name, distribution.name, distribution.version)
        yield MethodEntry(*own, "".join(papers[:1]), point.value, state, reason)


def _why_broken(module: str) -> str:
    top = module.partition(":")[0].partition(".")[0]
    return "" if importlib.util.find_spec(top) else f"its module {top!r} does not exist"


def _why_unfit(requires: Iterable[str]) -> str:
    """Tell which core a distribution *requires*, if it is not this one; else an empty string."""
    for line in requires:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            return f"its requirement {line!r} cannot be read"
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        fits = need.specifier.contains(__version__, prereleases=True)
        if canonicalize_name(need.name) == "lmedit" and applies and not fits:
            return f"it needs {need}, this is lmedit {__version__}; install a version that fits"
    return ""


def _allowed(name: str) -> bool:
    only = os.environ.get(BLOCK_VARIABLE)
    return only is None or name in {part.strip() for part in only.split(",")}


def _only_claim(name: str, claims: Sequence[MethodEntry]) -> MethodEntry:
    """The only claim on *name*. If there are two owners, a broken entry that names both."""
    owners = sorted({claim.distribution for claim in claims})
    if len(owners) == 1:
        return claims[0]
    reason = f"{' and '.join(owners)} claim the name {name!r}; uninstall one"
    versions = ", ".join(c.version for c in sorted(claims, key=lambda claim: claim.distribution))
    return MethodEntry(name, ", ".join(owners), versions, "", "", "broken", reason)


@checks_kinds
def load(name: str) -> LoadedMethod:
    """Import the method *name* and register it.

    Raises `UnknownNameError` or `BrokenPluginError`; the message names the culprit and the remedy.
    """
    by_name = {entry.name: entry for entry in entries()}
    if name not in by_name:
        raise UnknownNameError("method", name, by_name)
    return _load(by_name[name])


def _load(entry: MethodEntry) -> LoadedMethod:
    name = entry.name
    if entry.state != "ok":
        whose = f" of {entry.distribution} {entry.version}" if entry.state == "broken" else ""
        raise BrokenPluginError(f"method {name!r}{whose} is {entry.state}: {entry.reason}")
    try:
        with prints_aside(), at_most(IMPORT_SECONDS):
            module = importlib.metadata.EntryPoint(name, entry.module, GROUP).load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenPluginError(_cannot_load(entry, error)) from error
    place = file_of(entry.module.partition(":")[0].partition(".")[0])
    code = code_digest(place, versioned=bool(entry.version))
    return register(
        module, name=name, distribution=entry.distribution, version=entry.version, code=code
    )


def load_file(path: Path) -> LoadedMethod:
    """Load a method from one Python file, without a package."""
    module = module_of(path)
    return register(module, name=None, distribution=path.name, version="", code=code_digest(path))


class _FromSource(SourceFileLoader):
    """Runs the file as it is now. Stored bytecode counts seconds, and may be of an older file."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the present source of the module *fullname*."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


def module_of(path: Path) -> ModuleType:
    """Import the plugin file *path*; raises `BrokenPluginError` with culprit and remedy."""
    if not path.is_file():
        raise BrokenPluginError(f"no plugin file {str(path)!r}; name a Python file")
    name = str(path.resolve())  # no other module has this name
    if path.suffix != ".py":
        raise BrokenPluginError(f"plugin file {str(path)!r} is not Python; name a .py file")
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look names up there
    try:
        with prints_aside(), at_most(IMPORT_SECONDS):
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise BrokenPluginError(f"plugin file {path.name!r}: {last_line(error)}") from error
    return module


def register(
    module: ModuleType | object,
    *,
    name: str | None,
    distribution: str,
    version: str,
    code: str = "",
) -> LoadedMethod:
    """Put *module* into its own plugin manager and call its `edit_describe`.

    The method must have the *name* of its entry point (law 1), or any if it is None. *code* is the
    digest of its code. Raises `BrokenPluginError`.
    """
    import pluggy

    from lmedit import defaults, hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(defaults, f"{BUILT_IN}defaults")
    culprit = f"method {name!r} of {distribution}" if name else f"plugin {distribution}"
    try:
        manager.register(module, name or distribution)
        manager.check_pending()
        with prints_aside(), at_most(IMPORT_SECONDS):
            method = manager.hook.edit_describe()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenPluginError(f"{culprit}: {last_line(error)}") from error
    _check_method(method, name, culprit)
    if implements(manager, "edit_compute_joint") and not implements(manager, "edit_compute"):
        manager.register(one_of_many(manager), f"{BUILT_IN}one of many")
    loaded = LoadedMethod(method, manager, distribution, version, code)
    manager.register(guard_of(loaded.culprit, module), f"{BUILT_IN}guard")
    return loaded


def _check_method(method: object, name: str | None, culprit: str) -> None:
    from lmedit.options import Method, Options

    if not isinstance(method, Method):
        raise BrokenPluginError(f"{culprit}: edit_describe must return a Method, not {method!r}")
    if not (isinstance(method.options, type) and issubclass(method.options, Options)):
        raise BrokenPluginError(f"{culprit}: its options must be a class derived from Options")
    if name is not None and method.name != name:
        what = f"it calls itself {method.name!r}; it must have its entry point's name"
        raise BrokenPluginError(f"{culprit}: {what}")
    if not isinstance(method.name, str) or not is_name(method.name):
        raise BrokenPluginError(f"{culprit}: {method.name!r:.80} is not a valid name; {NAMES}")
    if method.name in RESERVED:
        raise BrokenPluginError(f"{culprit}: the name {method.name!r} is reserved for the core")
    try:
        method.options()
    except Exception as error:
        raise BrokenPluginError(f"{culprit}: every option needs a default: {error}") from error


def resolve(
    names: Sequence[str],
    files: Sequence[Path] = (),
    left_out: Callable[[str], object] = lambda _: None,
    used: Sequence[str | None] = (),
    skip: Collection[str] = (),
) -> list[LoadedMethod]:
    """Load the methods *names*; a method from *files* wins over an installed one.

    Without names, load all methods that work, and call *left_out* with the reason for each other.
    With names, *left_out* gets a line for each method of *files* that is neither named nor *used*.
    Without names, methods of *skip* are not loaded.
    """
    extra: dict[str, LoadedMethod] = {}
    for loaded in map(load_file, files):
        if loaded.name in extra:
            both = f"{extra[loaded.name].distribution} and {loaded.distribution}"
            raise BrokenPluginError(f"{both} claim the name {loaded.name!r}; give one of them")
        extra[loaded.name] = loaded
    if names:
        for name in extra.keys() - {*names, *used}:
            left_out(f"--plugin {extra[name].distribution}: its method {name!r} is not named")
        return [extra[name] if name in extra else load(name) for name in names]
    found = list(extra.values())
    for entry in entries():
        if entry.name not in {*extra, *skip} and entry.state != "blocked":
            try:
                found.append(_load(entry))
            except BrokenPluginError as error:
                left_out(str(error))
    return found


def check_entry(entry: MethodEntry) -> MethodEntry:
    """Try to load *entry*. Return it unchanged, or as broken with the reason."""
    if entry.state != "ok":
        return entry
    try:
        _load(entry)
    except LmeditError as error:
        return MethodEntry(**{**entry.__dict__, "state": "broken", "reason": str(error)})
    return entry


def _cannot_load(entry: MethodEntry, error: BaseException) -> str:
    what = f"method {entry.name!r} of {entry.distribution} {entry.version} cannot be loaded"
    return f"{what}: {last_line(error)}; fix or uninstall {entry.distribution}"


def check_joins(loaded: LoadedMethod) -> None:
    """Raise `RequestError` if *loaded* cannot compute one change for several facts."""
    if not implements(loaded.manager, "edit_compute_joint"):
        raise RequestError(
            f"{loaded.name} edits one fact at a time; give one fact, or use a method with a joint "
            "update, such as memit"
        )


def check_subject(loaded: LoadedMethod, request: Request) -> None:
    """Raise `RequestError` if *loaded* needs a subject and *request* names none."""
    if loaded.method.needs_subject and request.subject is None:
        what = "edits at the place of the subject, and the fact names no subject"
        raise RequestError(f"{loaded.name} {what}; give --subject NAME, or --subject auto")
