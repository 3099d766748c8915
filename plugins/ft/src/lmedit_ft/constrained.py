"""FT-L: FT with every entry's change bounded, as an lmedit method of its own."""

from __future__ import annotations

from lmedit import Method, hookimpl
from lmedit_ft import PAPER, edit_compute, edit_compute_many, edit_locate, edit_plan
from lmedit_ft.options import FtLOptions

__all__ = ["edit_compute", "edit_compute_many", "edit_describe", "edit_locate", "edit_plan"]


@hookimpl
def edit_describe() -> Method:
    """FT-L needs no preparation."""
    return Method("ft-l", PAPER, FtLOptions, locates_answer=False)
