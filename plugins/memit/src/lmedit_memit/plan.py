"""The cost of a joint edit: statistics once, the targets, and one solution for each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work, hookimpl
from lmedit.values.costs import DOUBLE, counting_work, search_work, width_of
from lmedit_memit.targets import AT_ONCE

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_memit.options import JointOptions


@hookimpl
def edit_plan(lm: Lm, options: JointOptions, requests: int) -> dict[str, Work]:
    """The work of the statistics, and of a joint edit of *requests* requests."""
    layers = options.blocks
    D, H = width_of(lm, layers[-1]), lm.hidden_size
    search = search_work(lm, options, requests, layers[-1], AT_ONCE)
    memory = {
        **search.memory,
        "the factor of C of a layer, double": float(DOUBLE * D**2),
        "keys, residuals and the change": 3.0 * DOUBLE * requests * (D + H),
    }
    solved = min(requests, D)
    solve = 4 * D**2 * requests + 2 * D * requests * solved + solved**3 / 3
    return {
        "prepare": counting_work(lm, options, layers),
        "edit": Work(memory, search.flops + len(layers) * solve),
    }
