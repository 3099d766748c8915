"""The cost of KN: one staircase pass for every prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work
from lmedit.planning import PROMPT, block_flops, head_flops, in_passing, kept_for_gradient, logits

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_kn.options import KnOptions


def works(lm: Lm, options: KnOptions, requests: int) -> dict[str, Work]:
    """The work of an edit: a row of the staircase runs through half of the blocks, on average."""
    stairs = lm.n_layers * options.m
    rows = min(options.rows, stairs)
    prompts = 1 + len(options.frames) + len(options.prompts) + len(options.negative_prompts)
    memory = {
        "rows for the gradient": kept_for_gradient(lm, rows, lm.n_layers / 2),
        "logits": logits(lm, rows),
        "the prompt": in_passing(lm, PROMPT) + kept_for_gradient(lm, PROMPT, 1),
    }
    climb = 2 * (block_flops(lm, stairs, lm.n_layers / 2) + head_flops(lm, stairs))
    each = climb + block_flops(lm, PROMPT, lm.n_layers)
    return {"edit": Work(memory, requests * prompts * each)}
