"""Limits and comparisons of tests read a few lines of held-out text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("actions.judged", "actions.compare", "api.comparisons")


@pytest.fixture(autouse=True, scope="module")
def short_held_out_text() -> Iterator[None]:
    """Limits and comparisons read 4 lines of held-out text, unless a test names a number.

    They read 40 by default, and most of a search within a budget is this reading. No law of these
    tests depends on the number; `test_limits_read_forty_lines_of_a_longer_text` holds it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for place in PLACES:
            patch.setattr(f"lmedit.{place}.HELDOUT_LINES", 4)
        yield
