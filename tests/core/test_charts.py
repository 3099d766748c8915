"""Charts: what is written on them can be read."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lmedit import Bars
from lmedit.charts.figures import _figure

METHODS = (
    *("base", "alphaedit", "emmet", "ft", "ft-l", "ke", "kn", "locft-bf", "lora", "memit", "mend"),
    *("rome", "ultraedit"),
)


@pytest.mark.parametrize("count", [3, 7, 13])
def test_the_labels_of_columns_do_not_overlap(count: int) -> None:
    names = METHODS[:count]
    rows = {name: tuple(range(count)) for name in ("ES: the new answer wins", "PS: after it")}
    drawn = _figure([Bars("scores", "method", "%", names, rows)])
    FigureCanvasAgg(drawn).draw()
    labels = drawn.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == [*names]
    assert {label.get_rotation() for label in labels} == {35.0 if count > 7 else 0.0}
    if count <= 7:
        boxes = [label.get_window_extent() for label in labels]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_a_very_long_label_is_cut() -> None:
    drawn = _figure([Bars("scores", "method", "%", ("rome", 99 * "x"), {"ES": (1.0, 2.0)})])
    FigureCanvasAgg(drawn).draw()
    labels = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert labels == ["rome", 29 * "x" + "…"]
    assert drawn.axes[0].get_position().height > 0.3
