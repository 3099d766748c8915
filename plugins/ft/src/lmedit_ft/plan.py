"""The cost of FT: Adam on one dense matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work
from lmedit.planning import PROMPT, block_flops, head_flops, in_passing, kept_for_gradient, logits

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_ft.options import FtOptions

AT_EACH_ENTRY = 16
"""Bytes per entry: Adam stores Delta, its gradient and two moments."""
GIGABYTE = 2**30
"""Bytes that the Adam states of several requests may use together."""


def at_once(lm: Lm, layer: int) -> int:
    """The number of requests to train together."""
    return max(1, GIGABYTE // (AT_EACH_ENTRY * lm.mlp_width(layer) * lm.hidden_size))


def works(lm: Lm, options: FtOptions, requests: int) -> dict[str, Work]:
    """The work of an edit of *requests* requests."""
    layer = options.block
    rows, above = min(requests, at_once(lm, layer)), lm.n_layers - layer
    entries = lm.mlp_width(layer) * lm.hidden_size
    memory = {
        "Adam, float32": float(AT_EACH_ENTRY * entries * rows),
        "the updates": 4.0 * entries * requests,
        "rows for the gradient": kept_for_gradient(lm, rows * PROMPT, above),
        "logits": logits(lm, rows) + in_passing(lm, rows * PROMPT),
    }
    step = 3 * (block_flops(lm, requests * PROMPT, above) + head_flops(lm, requests))
    return {"edit": Work(memory, options.steps * step)}
