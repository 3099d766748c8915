"""Means over facts with their bands."""

from __future__ import annotations

import pytest

from lmedit.actions.facts import average_facts, charts_of


def test_each_place_is_averaged_over_the_facts_that_have_the_series() -> None:
    found = average_facts(
        [
            {"Effect": {"last": [1.0, 2.0], "middle": [5.0, 5.0]}},
            {"Effect": {"last": [3.0, 2.0]}},
        ]
    )
    last, middle = found["Effect"]["last"], found["Effect"]["middle"]
    assert (last["mean"], last["n"]) == ([2.0, 2.0], 2)
    assert last["half_width"] == pytest.approx([1.96 / 2**0.5, 0])
    assert (middle["mean"], middle["half_width"], middle["n"]) == ([5.0, 5.0], [0, 0], 1)
    (chart,) = charts_of(found)
    assert chart.title == "Effect"
    assert chart.series == {"last (n=2)": (2.0, 2.0), "middle (n=1)": (5.0, 5.0)}
    assert chart.bands["last (n=2)"] == pytest.approx((1.96 / 2**0.5, 0))
