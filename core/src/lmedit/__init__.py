"""lmedit: change single facts in language models, measure what else changed, take edits back.

Every public name can be imported from here. It is loaded on first use, so importing `lmedit` is
cheap and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmedit import _moved
from lmedit.version import __version__ as __version__

if TYPE_CHECKING:
    from lmedit.api.comparisons import Comparison, comparison
    from lmedit.api.editors import best_edit, editor
    from lmedit.charts import Bars, Heat, Lines
    from lmedit.edits.ledger import Ledger, applied
    from lmedit.edits.patches import load_patch, save_patch
    from lmedit.hookspecs import hookimpl
    from lmedit.models import Lm, load_lm
    from lmedit.options import Method, Options, build_options
    from lmedit.pipeline import Editor, prepare
    from lmedit.registry import load
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import (
        Applied,
        Carried,
        Case,
        Corpus,
        Delta,
        Dense,
        Location,
        LowRank,
        Pooled,
        Prepared,
        Probed,
        Request,
        Site,
        Update,
        Work,
        World,
    )

_HOMES = {
    "lmedit.storage.tensors": ("Checkpoint",),
    "lmedit.edits.patches": ("load_patch", "save_patch"),
    "lmedit.charts": ("Bars", "Heat", "Lines"),
    "lmedit.api.comparisons": ("Comparison", "comparison"),
    "lmedit.api.editors": ("best_edit", "editor"),
    "lmedit.hookspecs": ("hookimpl",),
    "lmedit.edits.ledger": ("Ledger", "applied"),
    "lmedit.models": ("Lm", "load_lm"),
    "lmedit.options": ("Method", "Options", "build_options"),
    "lmedit.pipeline": ("Editor", "prepare"),
    "lmedit.registry": ("load",),
    "lmedit.types": (
        "Applied",
        "Carried",
        "Case",
        "Corpus",
        "Delta",
        "Dense",
        "Location",
        "LowRank",
        "Pooled",
        "Prepared",
        "Probed",
        "Request",
        "Site",
        "Update",
        "Work",
        "World",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Applied",
    "Bars",
    "Carried",
    "Case",
    "Checkpoint",
    "Comparison",
    "Corpus",
    "Delta",
    "Dense",
    "Editor",
    "Heat",
    "Ledger",
    "Lines",
    "Lm",
    "Location",
    "LowRank",
    "Method",
    "Options",
    "Pooled",
    "Prepared",
    "Probed",
    "Request",
    "Site",
    "Update",
    "Work",
    "World",
    "applied",
    "best_edit",
    "build_options",
    "comparison",
    "editor",
    "hookimpl",
    "load",
    "load_lm",
    "load_patch",
    "prepare",
    "save_patch",
]


_moved.install()


def __getattr__(name: str) -> Any:
    """Import the module of the public *name* on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lmedit' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
