"""The layouts of records that lmedit reads, by name: their keys, and the function for a `Case`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.cases import counterfact, jsonl, knowedit, mquake, questions, ripple, zsre

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lmedit.types import Case


@dataclass(frozen=True)
class Layout:
    """A layout: the keys of its records, and the pure function that reads a record."""

    name: str
    keys: frozenset[str]
    case_from: Callable[[Mapping[str, Any], int], Case]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("counterfact", counterfact.KEYS, counterfact.case_from),
        Layout("facts", jsonl.KEYS, jsonl.case_from),
        Layout("zsre", zsre.KEYS, zsre.case_from),
        Layout("zsre-alt", zsre.KEYS, zsre.case_from_alt),
        Layout("knowedit", knowedit.KEYS, knowedit.case_from),
        Layout("mquake", mquake.KEYS, mquake.case_from),
        Layout("qaedit", questions.QAEDIT, questions.qaedit),
        Layout("wikibigedit", questions.WIKIBIGEDIT, questions.wikibigedit),
        Layout("ultraeditbench", questions.ULTRAEDITBENCH, questions.ultraeditbench),
        Layout("ripple", ripple.KEYS, ripple.case_from),
    )
}
"""If several layouts fit equally well, the first one is used."""


def layout_of(records: Iterable[Any]) -> Layout | None:
    """The layout that shares most keys with the first record that has any known key."""
    for record in records:
        if isinstance(record, dict):
            best = max(LAYOUTS.values(), key=lambda layout: len(layout.keys & set(record)))
            if best.keys & set(record):
                return best
    return None


def split_name(name: str) -> tuple[Layout | None, str]:
    """Split a layout before a colon from *name*, as in ``zsre-alt:FILE``."""
    before, colon, rest = name.partition(":")
    return (LAYOUTS[before], rest) if colon and before in LAYOUTS else (None, name)
