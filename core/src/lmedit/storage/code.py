"""Digests of Python code, for keys of results. They read code that has no fixed version.

Code is fixed if it is Python's own, or if pip installed it as a release; its version identifies it.
That holds for folders of another environment too, which a `.pth` file or PYTHONPATH names.
Single files, editable installs and modules on PYTHONPATH can change under one name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import site
import sysconfig
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = "lmedit"
"""The core's package: the digest of a plugin does not hold it."""
LEFT_OUT = frozenset({"__pycache__", "tests"})
"""Folders of a package that do not decide what it computes."""
RELEASES = frozenset({"site-packages", "dist-packages"})
"""The names of folders that hold installed releases, in every interpreter and environment."""


def code_digest(start: Path | None, *, versioned: bool = True) -> str:
    """SHA-256 of the code at *start*, a Python file or a package folder; 64 hex digits.

    It covers the modules that the code imports, and theirs, as far as they are not fixed and not
    lmedit. Without *versioned*, the code at *start* itself counts also where releases lie. Empty if
    all code is fixed.
    """
    start = start and start.resolve()
    waiting = [] if start is None else [start]
    files: dict[str, str] = {}
    seen: set[Path] = set()
    while waiting:
        at = waiting.pop().resolve()
        if at in seen or (_is_fixed(at) and (versioned or at != start)):
            continue
        seen.add(at)
        for name, file in _files(at):
            data = file.read_bytes()
            files[f"{at.name}/{name}"] = hashlib.sha256(data).hexdigest()
            if file.suffix == ".py":
                waiting += [found for top in _imported_modules(data) if (found := file_of(top))]
    if not files:
        return ""
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


@cache
def core_code() -> str:
    """The digest of the core's own code; empty if the core is an installed release."""
    folder = Path(__file__).resolve().parents[1]
    if _is_fixed(folder):
        return ""
    total = hashlib.sha256()
    for name, file in _files(folder):
        data = file.read_bytes()
        total.update(f"{name}|{len(data)}|".encode() + data)
    return total.hexdigest()


def file_of(module: str) -> Path | None:
    """The package folder or file of the top-level *module*; None if it has none, or is lmedit.

    The module is not imported.
    """
    if module == OWN:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """The files of a package folder by their path in it, or the one file *place*."""
    if place.is_file():
        yield "", place
        return
    for file in sorted(place.rglob("*")):
        inside = file.relative_to(place)
        hidden = any(part in LEFT_OUT or part.startswith(".") for part in inside.parts)
        if file.is_file() and not hidden:
            yield inside.as_posix(), file


@lru_cache(maxsize=1024)
def _imported_modules(source: bytes) -> frozenset[str]:
    """The top-level names that *source* imports, anywhere in it; empty if it cannot be parsed.

    Each source is parsed once in a process.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def _is_fixed(place: Path) -> bool:
    """Whether *place* is Python's own or an installed release, of this or another interpreter."""
    if any(place.is_relative_to(folder) for folder in _fixed_folders()):
        return True
    return not RELEASES.isdisjoint(place.parts) or _has_releases(place.parent)


@cache
def _has_releases(folder: Path) -> bool:
    """Whether pip installed releases into *folder*, as ``pip install --target`` does."""
    return next(folder.glob("*.dist-info/RECORD"), None) is not None


@cache
def _fixed_folders() -> list[Path]:
    """The folders of Python's own modules and of installed releases."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = [sysconfig.get_paths()[name] for name in names]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(path).resolve() for path in paths]
