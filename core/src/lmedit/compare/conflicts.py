"""What to tell the user if one task has two different results."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmedit.executors import Finished

SHOWN_OF_PAYLOAD = 160
"""How many characters of a payload an error shows, around the first difference."""


def tell_conflict(known: Finished, other: Finished) -> str:
    """The error that one task has two results, with both."""
    one, two = known.payload, other.payload
    pairs = enumerate(zip(one, two, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))
    start = max(0, same - SHOWN_OF_PAYLOAD // 2)
    shown = [text[start : start + SHOWN_OF_PAYLOAD] for text in (one, two)]
    return (
        f"task {known.key[:12]} ({known.method}, case {known.case_id}) has two different "
        f"results: ...{shown[0]}... and ...{shown[1]}...; give all workers the same versions, "
        "device and number of threads, and another --run"
    )
