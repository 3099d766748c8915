"""The cost of a joint edit: a forward and a backward pass, the factors, one solution per matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Work
from lmedit.planning import PROMPT, block_flops, head_flops, kept_for_gradient, logits

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit_ultraedit.options import UltraEditOptions

ANSWER = 3
"""The assumed tokens of an answer."""
GROUP = 32
"""Facts in a pass."""
SINGLE, DOUBLE = 4, 8
PASSES = 3
"""A forward and a backward pass cost about three forward passes."""


def works(lm: Lm, options: UltraEditOptions, requests: int) -> dict[str, Work]:
    """The work of a joint edit of *requests* requests, and of the warm-up."""
    shapes = [tuple(lm.weight(site).shape) for site in options.sites(lm)]
    above = lm.n_layers - options.blocks[0]

    def passes(facts: int) -> tuple[dict[str, float], float]:
        memory = {
            "rows for the gradient": kept_for_gradient(lm, PROMPT * min(facts, GROUP), above),
            "logits": logits(lm, ANSWER * min(facts, GROUP)),
            "factors, float32": float(SINGLE * 2 * PROMPT * facts * sum(map(sum, shapes))),
        }
        flops = block_flops(lm, PROMPT * facts, lm.n_layers + (PASSES - 1) * above)
        return memory, flops + PASSES * head_flops(lm, ANSWER * facts)

    memory, flops = passes(requests)
    tokens = ANSWER * requests
    for rows, columns in shapes:
        size = min(tokens, columns)
        flops += 2 * tokens * columns * size + size**3 / 3 + 2 * size * size * rows
    widest = max(map(sum, shapes))
    memory["the solution of a matrix, double"] = float(
        DOUBLE * (min(tokens, max(columns for _, columns in shapes)) ** 2 + 3 * tokens * widest)
    )
    found = {"edit": Work(memory, flops)}
    return {"prepare": Work(*passes(options.warm_up))} | found if options.warm_up else found
