"""How methods make the edits of a case that has several."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.compare.candidates import Candidate
    from lmedit.types import Case

TOGETHER, ADDED = "together", "added"
"""By one call of the joint hook; or the sum of single edits, each computed on the base model."""


def how_several(cases: Sequence[Case], candidates: Sequence[Candidate]) -> dict[str, str]:
    """By method, `TOGETHER` or `ADDED`; empty if every one of *cases* has one edit.

    A baseline without an editor of its own is left out.
    """
    if not any(case.further for case in cases):
        return {}
    editors = {each.name: each.editor for each in candidates}
    return {name: TOGETHER if editor.joins else ADDED for name, editor in editors.items() if editor}


def several_lines(how: Mapping[str, str]) -> list[str]:
    """One sentence on the methods of *how*; nothing if no case has several edits."""
    words = {TOGETHER: "computes them together", ADDED: "adds edits computed one by one"}
    told = [f"{name} {words[each]}" for name, each in how.items()]
    return [f"some cases have several edits: {', '.join(told)}"] if told else []
