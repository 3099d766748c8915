"""The cost of ROME: statistics once, then the search for the value in each edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work
from lmedit.values.costs import DOUBLE, counting_work, search_work

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_rome.options import RomeOptions


def works(lm: Lm, options: RomeOptions, requests: int) -> dict[str, Work]:
    """The work of the statistics, and of an edit of *requests* requests at once."""
    layer = options.block
    edit = search_work(lm, options, requests, layer)
    if not options.covariance:
        return {"edit": edit}
    factor = {"the factor of C, double": float(DOUBLE * lm.mlp_width(layer) ** 2)}
    return {
        "prepare": counting_work(lm, options, [layer]),
        "edit": Work({**edit.memory, **factor}, edit.flops),
    }
