"""The cost of ROME: statistics once, then the search for the value in each edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work, planning
from lmedit.stats import BATCH_TOKENS

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_rome.options import RomeOptions

DOUBLE = 8
DOCUMENT = 500
"""Assumed number of tokens of a document."""
ADAM_PASSES = 3
"""A step's forward and backward pass cost about three forward passes."""


def works(lm: Lm, options: RomeOptions, requests: int) -> dict[str, Work]:
    """The work of the statistics, and of an edit of *requests* requests at once."""
    layer = options.block
    found = {"edit": _edit(lm, options, requests, layer)}
    if options.covariance:
        found = {"prepare": _statistics(lm, options, layer)} | found
    return found


def _statistics(lm: Lm, options: RomeOptions, layer: int) -> Work:
    """S, C and its factor in double precision, and batches of tokens."""
    size = lm.weight(lm.mlp_out(layer)).shape[1]
    length = min(options.max_length or lm.max_positions, lm.max_positions, DOCUMENT)
    tokens = float(options.samples) * (length if options.sample_unit == "documents" else 1)
    if options.tolerance is not None:
        # The error of C^-1 k falls with the square root of tokens over dimensions.
        tokens = min(tokens, size / options.tolerance**2)
    memory = {
        "S, C and its factor, double": 3.0 * DOUBLE * size**2,
        "a batch of tokens": planning.in_passing(lm, BATCH_TOKENS) + 4.0 * BATCH_TOKENS * size,
    }
    return Work(memory, planning.block_flops(lm, tokens, layer + 1) + 2 * tokens * size**2)


def _edit(lm: Lm, options: RomeOptions, requests: int, layer: int) -> Work:
    """The rows of all contexts, from the subject's last token and the edited layer on."""
    size = lm.weight(lm.mlp_out(layer)).shape[1]
    rows = requests * (2 + sum(count for _, count in options.prefixes))
    above = lm.n_layers - layer
    places = rows * 2
    memory = {
        "rows for the gradient": planning.kept_for_gradient(lm, rows * planning.AFTER, above),
        "logits": planning.logits(lm, places),
        "a pass over the contexts": planning.in_passing(lm, rows * planning.PROMPT),
    }
    if options.covariance:
        memory["the factor of C, double"] = float(DOUBLE * size**2)
    step = planning.block_flops(lm, rows * planning.AFTER, above) + planning.head_flops(lm, places)
    once = planning.block_flops(lm, 2 * rows * planning.PROMPT, layer + 1)
    return Work(memory, once + ADAM_PASSES * options.steps * step)
