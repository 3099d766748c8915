"""Integrated gradients of all layers in one pass over single tokens.

Only the activation at the prompt's last token is scaled, so the tokens before it run once. Layer l
adds its m scaled copies of the last token to the batch; below layer l they would all be equal. So
one forward and one backward pass over these rows replace a pass over the whole prompt per layer
(docs/explanation/performance.md). The point t = 1 needs no row: the gradient by the activations of
the clean first row holds it for all layers.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from lmedit.memory import in_parts
from lmedit.replay import keep
from lmedit.replay.staircase import climbing
from lmedit_kn.equations import attribution, path
from lmedit_kn.neurons import changed_activation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit import Lm
    from lmedit.replay import Kept
    from lmedit_kn.options import KnOptions


FINER = 5
"""A layer whose sum is off is integrated again, with five times as many points."""
OFF = 0.1
"""The sum of a layer's attributions is off if it misses P(a) - P(0) by more than this share of the
largest such difference. Products in bfloat16 alone make it miss 0.05."""


@dataclass(frozen=True)
class Attributions:
    """The scores (L, D) in float32 and the probability of one token behind one prompt."""

    scores: Tensor
    probability: float
    finer: tuple[int, ...] = ()
    """The layers whose integral took more points than the others."""
    missed: float | None = None
    """The largest error of a layer's sum, as a share of the largest sum; None if not checked."""


def nobody(_: int) -> None:
    """Hear nothing."""


def attributions(
    lm: Lm,
    ids: Sequence[int],
    token: int,
    options: KnOptions,
    hear: Callable[[int], object] = nobody,
    finer: Collection[int] = (),
) -> Attributions:
    """The attribution of each neuron at the last of *ids* to the probability of *token*.

    After each pass *hear* gets the number of layers that the pass is the first to reach.

    P may bend sharply along the path of one layer: the first one of SmolLM2. So the default checks
    the sum of each layer (completeness). A layer whose sum is off is integrated again. The layers
    *finer* take the many points at once: their sums were off behind another prompt of the fact.
    """
    kept = keep(lm, [list(ids)], [len(ids) - 1], 0)
    climb = _Climb(lm, kept, options.site, token)
    points = {layer: FINER * options.m if layer in finer else options.m for layer in lm.editable}
    scores = _integrate(climb, points, options, hear)
    missed: float | None = None
    if options.settles:
        again = {
            layer: FINER * options.m
            for layer, share in climb.misses(scores).items()
            if share > OFF and layer not in finer
        }
        scores |= _integrate(climb, again, options)
        finer = sorted({*finer, *again})
        missed = max(climb.misses(scores).values())
    widest = max(len(score) for score in scores.values())
    stacked = torch.zeros(lm.n_layers, widest, device=lm.device)
    for layer, score in scores.items():  # blocks may differ in width, or have no MLP
        stacked[layer, : len(score)] = score
    return Attributions(stacked, climb.probability, tuple(finer), missed)


def _integrate(
    climb: _Climb,
    points: Mapping[int, int],
    options: KnOptions,
    hear: Callable[[int], object] = nobody,
) -> dict[int, Tensor]:
    """The attributions (D,) by layer, each from its number of *points*.

    P(0) is read too if sums are checked, once for each layer.
    """
    paths = {m: path(options.rule, m) for m in set(points.values())}
    stairs: list[tuple[int, Tensor, Tensor]] = []
    for layer, m in points.items():
        t, w = paths[m]
        if options.settles and float(t[0]) > 0 and layer not in climb.at_zero:
            t, w = (torch.cat([torch.zeros(1, dtype=each.dtype), each]) for each in (t, w))
        stairs += [(layer, *at) for at in zip(t, w, strict=True)]
    scores: dict[int, Tensor] = {}
    before = 0
    for part in in_parts(climb, stairs, options.rows):
        for layer, score in part.items():
            scores[layer] = scores.get(layer, 0) + score
        hear(len(scores) - before)
        before = len(scores)
    return scores


class _Probability(torch.autograd.Function):
    """The probability (n,) of one token from logits (n, V).

    softmax()[:, token] gives the same, and its backward pass reads and writes twice as much.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token: int) -> Tensor:
        """p = softmax(z)_t, in float32."""
        P = logits.softmax(-1, dtype=torch.float32)
        ctx.token, ctx.dtype = token, logits.dtype
        ctx.save_for_backward(P)
        return P[:, token].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """dp/dz = p (1_t - P), times the *gradient* (n,)."""
        (P,) = ctx.saved_tensors
        scale = gradient * P[:, ctx.token]
        found = P * -scale[:, None]
        found[:, ctx.token] += scale
        return found.to(ctx.dtype), None


class _Climb:
    """One pass for some stairs: each is a layer, a point and its weight; lowest layers first."""

    def __init__(self, lm: Lm, kept: Kept, site: str, token: int) -> None:
        self.lm, self.kept, self.site, self.token = lm, kept, site, token
        self.probability = 0.0
        self.at_zero: dict[int, float] = {}
        """P(0) by layer, where a stair had the point 0."""

    def misses(self, scores: Mapping[int, Tensor]) -> dict[int, float]:
        """By layer: |sum of the attributions - (P(a) - P(0))| / the largest |P(a) - P(0)|."""
        whole = {layer: self.probability - zero for layer, zero in self.at_zero.items()}
        largest = max(1e-30, *map(abs, whole.values()))
        return {
            layer: abs(float(scores[layer].double().sum()) - of) / largest
            for layer, of in whole.items()
        }

    def __call__(self, stairs: Sequence[tuple[int, Tensor, Tensor]]) -> dict[int, Tensor]:
        """The weighted sums of a * dP/da over the points, (D,) by layer, in float32."""
        rows = [stair for stair in stairs if stair[1] < 1]
        ends = {layer: float(w) for layer, t, w in stairs if t == 1}
        points: dict[int, list[Tensor]] = {layer: [] for layer in sorted({s[0] for s in stairs})}
        for layer, t, _ in rows:
            points[layer].append(t)
        weights = torch.tensor([1.0, *(float(w) for _, _, w in rows)], device=self.lm.device)
        steps: dict[int, tuple[Tensor, Tensor]] = {}
        joining = [len(points.get(layer, ())) for layer in range(self.lm.n_layers)]
        alive = list(accumulate(joining, initial=1))[1:]
        total = 1 + len(rows)
        with ExitStack() as stack:
            stack.enter_context(climbing(self.lm, alive, total))
            for layer, at in points.items():
                first = alive[layer] - len(at)
                stack.enter_context(self._scaled(layer, at, first, steps))
            logits = self.kept.repeat(total).logits([0]).squeeze(1)  # (1 + N, V)
        p: Tensor = _Probability.apply(logits, self.token)  # type: ignore[no-untyped-call]
        self.probability = float(p[0].detach())
        self.at_zero |= {
            layer: float(p[1 + i].detach()) for i, (layer, t, _) in enumerate(rows) if t == 0
        }
        leaves = [each for pair in steps.values() for each in pair]
        gradients = torch.autograd.grad(weights @ p, leaves)
        found = {}
        for (layer, (a, _)), clean, scaled in zip(
            steps.items(), gradients[::2], gradients[1::2], strict=True
        ):
            mean = ends.get(layer, 0.0) * clean.float() + scaled.float().sum(0)
            found[layer] = attribution(a.detach().float(), mean)
        return found

    def _scaled(
        self, layer: int, points: list[Tensor], first: int, steps: dict[int, tuple[Tensor, Tensor]]
    ) -> AbstractContextManager[None]:
        """Replace activations at the prompt's last token by t * a, with a from the clean row.

        The rows are those from *first* on, one for each of *points*. *steps* gets a (D,) and the
        t * a (n, D), for their gradients.
        """
        place, length = int(self.kept.start[0]), self.kept.shape[1]

        def scale(x: Tensor) -> Tensor:
            rows = x.reshape(-1, length, x.shape[-1])  # (n, S, D)
            a = rows[0, place]
            a = a if a.requires_grad else a.detach().requires_grad_()
            t = torch.tensor(points).to(a)
            leaf = (t[:, None] * a.detach()).requires_grad_()
            steps[layer] = a, leaf
            changed = rows.clone()
            changed[0, place] = a
            changed[first : first + len(points), place] = leaf
            return changed.reshape(x.shape)

        return changed_activation(self.lm, layer, self.site, scale)
