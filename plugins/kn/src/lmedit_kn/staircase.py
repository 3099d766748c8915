"""Integrated gradients of all layers in one pass over single tokens.

Only the activation at the prompt's last token is scaled, so the tokens before it run once. Layer l
adds its m scaled copies of the last token to the batch; below layer l they would all be equal. So
one forward and one backward pass over these rows replace a pass over the whole prompt per layer
(docs/explanation/performance.md).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from lmedit.memory import in_parts
from lmedit.replay import keep
from lmedit.replay.staircase import climbing
from lmedit_kn.equations import attribution, path
from lmedit_kn.neurons import changed_activation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit import Lm
    from lmedit.replay import Kept
    from lmedit_kn.options import KnOptions


@dataclass(frozen=True)
class Attributions:
    """The scores (L, D) in float32 and the probability of one token behind one prompt."""

    scores: Tensor
    probability: float


def attributions(lm: Lm, ids: Sequence[int], token: int, options: KnOptions) -> Attributions:
    """The attribution of each neuron at the last of *ids* to the probability of *token*."""
    kept = keep(lm, [list(ids)], [len(ids) - 1], 0)
    t, w = path(options.rule, options.m)
    stairs = [(layer, *at) for layer in lm.editable for at in zip(t, w, strict=True)]
    climb = _Climb(lm, kept, options.site, token)
    scores: dict[int, Tensor] = {}
    for part in in_parts(climb, stairs, options.rows):
        for layer, score in part.items():
            scores[layer] = scores.get(layer, 0) + score
    widest = max(len(score) for score in scores.values())
    stacked = torch.zeros(lm.n_layers, widest, device=lm.device)
    for layer, score in scores.items():  # blocks may differ in width, or have no MLP
        stacked[layer, : len(score)] = score
    return Attributions(stacked, climb.probability)


class _Climb:
    """One pass for some stairs: each is a layer, a point and its weight; lowest layers first."""

    def __init__(self, lm: Lm, kept: Kept, site: str, token: int) -> None:
        self.lm, self.kept, self.site, self.token = lm, kept, site, token
        self.probability = 0.0

    def __call__(self, stairs: Sequence[tuple[int, Tensor, Tensor]]) -> dict[int, Tensor]:
        """The weighted sums of a * dP/da over the points, (D,) by layer, in float32."""
        points: dict[int, list[Tensor]] = {}
        for layer, t, _ in stairs:
            points.setdefault(layer, []).append(t)
        weights = torch.stack([w for _, _, w in stairs]).to(self.lm.device, torch.float32)
        steps: dict[int, tuple[Tensor, Tensor]] = {}
        joining = [len(points.get(layer, ())) for layer in range(self.lm.n_layers)]
        alive = list(accumulate(joining, initial=1))[1:]
        total = 1 + len(stairs)
        with ExitStack() as stack:
            stack.enter_context(climbing(self.lm, alive, total))
            for layer, at in points.items():
                first = alive[layer] - len(at)
                stack.enter_context(self._scaled(layer, at, first, steps))
            logits = self.kept.repeat(total).logits([0])[:, 0]
        p = logits.float().softmax(-1)[:, self.token]  # (1 + N,)
        self.probability = float(p[0].detach())
        leaves = [leaf for _, leaf in steps.values()]
        gradients = torch.autograd.grad(weights @ p[1:], leaves)
        return {
            layer: attribution(a.float(), gradient.float().sum(0))
            for (layer, (a, _)), gradient in zip(steps.items(), gradients, strict=True)
        }

    def _scaled(
        self, layer: int, points: list[Tensor], first: int, steps: dict[int, tuple[Tensor, Tensor]]
    ) -> AbstractContextManager[None]:
        """Replace activations at the prompt's last token by t * a, with a from the clean row.

        The rows are those from *first* on, one for each of *points*.
        """
        place, length = int(self.kept.start[0]), self.kept.shape[1]

        def scale(x: Tensor) -> Tensor:
            rows = x.reshape(-1, length, x.shape[-1])  # (n, S, D)
            a = rows[0, place].detach()
            t = torch.stack(points).to(a)
            leaf = (t[:, None] * a).requires_grad_()
            steps[layer] = a, leaf
            changed = rows.clone()
            changed[first : first + len(points), place] = leaf
            return changed.reshape(x.shape)

        return changed_activation(self.lm, layer, self.site, scale)
