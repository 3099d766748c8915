"""The cost of a hypernetwork editor: one training, then two small passes per edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.hyper.frozen import GIGABYTE
from lmedit.planning import PROMPT, block_flops, head_flops, in_passing, kept_for_gradient, logits
from lmedit.types import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit.hyper.network import Hypernetwork
    from lmedit.hyper.options import HyperOptions
    from lmedit.models import Lm

SINGLE, ADAM = 4, 4
"""Bytes of a number; copies of the network in a training: weights, gradient, two moments."""
TEXTS, PASSES = 2, 3
"""Texts of an example in a step; cost of a step in forward passes."""


def works(
    lm: Lm, options: HyperOptions, requests: int, network: Callable[[], Hypernetwork]
) -> dict[str, Work]:
    """The work of a training and of an edit. *network* builds a network without values."""
    with torch.device("meta"):
        count = sum(p.numel() for p in network().parameters())
    edited = len(options.blocks)
    tokens = TEXTS * PROMPT * min(options.batch, options.at_once or options.batch)
    sites = options.sites(lm)
    widest = max(sum(lm.weight(site).shape) for site in sites)
    training = {
        "network and Adam, float32": float(ADAM * SINGLE * count),
        "memory of the frozen blocks": min(
            options.cache_gigabytes * GIGABYTE,
            options.limit * PROMPT * SINGLE * (lm.hidden_size * 8 + len(sites) * widest),
        ),
        "rows for the gradient": kept_for_gradient(lm, tokens, edited),
        "logits": logits(lm, tokens),
    }
    step = PASSES * (block_flops(lm, tokens, edited) + head_flops(lm, tokens))
    transform = PASSES * 2 * count * PROMPT * options.batch / 2
    once = options.limit * block_flops(lm, 4 * PROMPT, lm.n_layers)
    edit = {
        "network, float32": float(2 * SINGLE * count),
        "factors and rows": kept_for_gradient(lm, PROMPT, edited) + in_passing(lm, PROMPT),
        "gradients, for their norms": float(SINGLE * max(lm.weight(s).numel() for s in sites)),
    }
    flops = block_flops(lm, PROMPT, lm.n_layers + 2 * edited) + 2 * count * PROMPT
    found = {"edit": Work(edit, requests * flops)}
    if getattr(options, "checkpoint", None) is None:
        training_work = Work(training, once + options.steps * (step + transform))
        found = {"prepare": training_work} | found
    return found
