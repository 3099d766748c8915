"""lmedit: change single facts inside language models, prove what else was touched, take it back.

Everything public is importable from here and loaded on first use, so importing `lmedit` is cheap
and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmedit.artifacts import Checkpoint, load_patch, save_patch
    from lmedit.charts import Bars, Heat, Lines
    from lmedit.comparing import Comparison, comparison
    from lmedit.editors import editor
    from lmedit.hookspecs import hookimpl
    from lmedit.ledger import Ledger, applied
    from lmedit.models import Lm, load_lm
    from lmedit.options import build_options
    from lmedit.pipeline import Editor, prepare
    from lmedit.registry import load
    from lmedit.types import (
        Applied,
        Case,
        Corpus,
        Delta,
        Dense,
        Location,
        LowRank,
        Method,
        Options,
        Prepared,
        Probed,
        Request,
        Site,
        Update,
        Work,
        World,
    )

__version__ = "0.1.0"

_HOMES = {
    "lmedit.artifacts": ("Checkpoint", "load_patch", "save_patch"),
    "lmedit.charts": ("Bars", "Heat", "Lines"),
    "lmedit.comparing": ("Comparison", "comparison"),
    "lmedit.editors": ("editor",),
    "lmedit.hookspecs": ("hookimpl",),
    "lmedit.ledger": ("Ledger", "applied"),
    "lmedit.models": ("Lm", "load_lm"),
    "lmedit.options": ("build_options",),
    "lmedit.pipeline": ("Editor", "prepare"),
    "lmedit.registry": ("load",),
    "lmedit.types": (
        "Applied", "Case", "Corpus", "Delta", "Dense", "Location",
        "LowRank", "Method", "Options", "Prepared", "Probed", "Request", "Site", "Update",
        "Work", "World",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Applied", "Bars", "Case", "Checkpoint", "Comparison", "Corpus", "Delta", "Dense", "Editor",
    "Heat", "Ledger", "Lines", "Lm", "Location", "LowRank", "Method", "Options", "Prepared",
    "Probed", "Request", "Site", "Update", "Work", "World",
    "applied", "build_options", "comparison", "editor", "hookimpl", "load", "load_lm",
    "load_patch", "prepare", "save_patch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the home of a public *name* on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lmedit' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
