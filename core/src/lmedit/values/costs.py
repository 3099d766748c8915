"""The work of counting C, and of the search for values, from the model's shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import planning
from lmedit.stats import BATCH_TOKENS
from lmedit.types import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.models import Lm
    from lmedit.values.options import ValueOptions

DOUBLE = 8
DOCUMENT = 500
"""Assumed number of tokens of a document."""
ADAM_PASSES = 3
"""A step's forward and backward pass cost about three forward passes."""


def width_of(lm: Lm, layer: int) -> int:
    """D, the number of inputs of the MLP output matrix of *layer*."""
    return lm.mlp_width(layer)


def counting_work(lm: Lm, options: ValueOptions, layers: Sequence[int]) -> Work:
    """The sums of *layers*, C and its factor in double precision, and batches of tokens."""
    last = max(layers)
    size = width_of(lm, last)
    length = min(options.max_length or lm.max_positions, lm.max_positions, DOCUMENT)
    tokens = float(options.samples) * (length if options.sample_unit == "documents" else 1)
    if options.tolerance is not None:
        # The error of C^-1 k falls with the square root of tokens over dimensions.
        tokens = min(tokens, size / options.tolerance**2)
    memory = {
        "S, C and its factor, double": (2.0 + len(layers)) * DOUBLE * size**2,
        "a batch of tokens": planning.in_passing(lm, BATCH_TOKENS) + 4.0 * BATCH_TOKENS * size,
    }
    flops = planning.block_flops(lm, tokens, last + 1) + 2 * tokens * len(layers) * size**2
    return Work(memory, flops)


def search_work(
    lm: Lm, options: ValueOptions, requests: int, layer: int, at_once: int | None = None
) -> Work:
    """The rows of all contexts, from the subject's last token and *layer* on.

    *at_once* requests share a pass; by default all of them.
    """
    each = 2 + sum(count for _, count in options.prefixes)
    rows, all_rows = min(requests, at_once or requests) * each, requests * each
    above = lm.n_layers - layer
    memory = {
        "rows for the gradient": planning.kept_for_gradient(lm, rows * planning.AFTER, above),
        "logits": planning.logits(lm, rows * 2),
        "a pass over the contexts": planning.in_passing(lm, rows * planning.PROMPT),
    }
    step = planning.block_flops(lm, all_rows * planning.AFTER, above)
    step += planning.head_flops(lm, all_rows * 2)
    once = planning.block_flops(lm, 2 * all_rows * planning.PROMPT, layer + 1)
    return Work(memory, once + ADAM_PASSES * options.steps * step)
