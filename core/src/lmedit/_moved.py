"""Old module paths of version 0.1. An import by an old path works for one version, with a warning.

A finder at the end of `sys.meta_path` handles paths without a file.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MOVED = {
    "lmedit.adapters": "lmedit.edits.lora",
    "lmedit.artifacts": "lmedit.storage.tensors",
    "lmedit.averages": "lmedit.actions.facts",
    "lmedit.beside": "lmedit.replay.unmerged",
    "lmedit.cache": "lmedit.replay.kv_cache",
    "lmedit.comparing": "lmedit.api.comparisons",
    "lmedit.drawing": "lmedit.charts.files",
    "lmedit.editors": "lmedit.api.editors",
    "lmedit.figures": "lmedit.charts.figures",
    "lmedit.fitting": "lmedit.memory",
    "lmedit.folders": "lmedit.edits.model_folders",
    "lmedit.ledger": "lmedit.edits.ledger",
    "lmedit.markup": "lmedit.charts.html",
    "lmedit.parts": "lmedit.storage.atomic",
    "lmedit.patches": "lmedit.edits.patches",
    "lmedit.recipes": "lmedit.edits.recipes",
    "lmedit.scaffold": "lmedit.actions.scaffold",
    "lmedit.staircase": "lmedit.replay.staircase",
}
"""Old path to new path; removed in 0.3."""
ELSEWHERE = {
    "lmedit.artifacts": (
        "lmedit.edits.patches",
        "lmedit.storage.cache",
        "lmedit.storage.json_files",
        "lmedit.storage.atomic",
        "lmedit.preparation",
    ),
}
"""More new modules that hold names of an old module."""
NAMES = {
    ("lmedit.types", "Options"): "lmedit.options",
    ("lmedit.types", "Method"): "lmedit.options",
}
"""Names that moved out of a module that still exists."""


def install() -> None:
    """Install the finder for the old paths, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def moved_name(module: str, name: str) -> Any:
    """Return *name*, which *module* held in version 0.1, and warn. Raises `AttributeError`."""
    home = NAMES.get((module, name))
    if home is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec that stands for the moved module."""
        del path, target
        return ModuleSpec(name, _Loader()) if name in MOVED else None


class _Loader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        """Copy the names of its new modules into *module*."""
        old, new = module.__name__, MOVED[module.__name__]
        homes = [importlib.import_module(home) for home in (new, *ELSEWHERE.get(old, ()))]

        def find(name: str) -> Any:
            for home in homes:
                if hasattr(home, name):
                    return getattr(home, name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}; see {new}")

        module.__getattr__ = find  # type: ignore[method-assign]
        _warn(old, new)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} has moved to {new}", DeprecationWarning, stacklevel=2)
