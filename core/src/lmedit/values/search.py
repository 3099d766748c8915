"""The search for a value (Meng et al. 2022, arXiv 2202.05262, equation 4): v* = v_0 + delta.

Delta is added at the subject's last token, at one place of the model or at several.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from lmedit.memory import InPieces
from lmedit.replay.products import products
from lmedit.storage.steps import tell_step
from lmedit.values.adam import Adam
from lmedit.values.equations import clamp, decay, essence_drift, target_loss
from lmedit.values.rows import LossRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.values.options import ValueOptions
    from lmedit.values.rows import Place, Rows


@dataclass(frozen=True)
class Value:
    """v* and its delta in float64, the loss (nats) of each pass, and the number of updates.

    Both are (H,), or (P, H) for P places.
    """

    v_star: Tensor
    delta: Tensor
    losses: list[float]
    updates: int


@dataclass
class Descent:
    """The search for one delta: v* = v_0 + delta minimises L(delta) of equation 4."""

    v_0: Tensor  # (H,) or (P, H): the model's value there for the bare prompt
    delta: Tensor  # of the same shape
    options: ValueOptions
    before: Tensor | None = None
    """log P (V,) after the essence prompt without delta; known after the first pass."""
    losses: list[float] = field(default_factory=list)
    updates: int = 0
    topped: int | None = None
    """The number of updates when all target tokens were first the top ones in every context."""

    def loss(self, of_target: Tensor, essence: Tensor) -> Tensor:
        """L(delta) in nats: target + lambda * KL + penalty.

        *of_target* (N, T) are log P of the target's tokens, *essence* (V,) log P after the essence
        prompt.
        """
        if self.before is None:
            self.before = essence.detach()
        options = self.options
        loss = target_loss(of_target)
        if options.kl_factor:
            per_entry = options.kl_reduction == "mean"
            kl = essence_drift(essence, self.before, per_entry=per_entry)
            loss = loss + options.kl_factor * kl
        if options.decay_kind == "loss" and options.decay:
            loss = loss + options.decay * decay(self.delta, self.v_0.to(self.delta))
        return loss

    @property
    def done(self) -> bool:
        """Whether the last loss is below `stop_loss`, or `stop_after_top` updates are over."""
        after = self.options.stop_after_top
        over = after is not None and self.topped is not None and self.updates >= self.topped + after
        return over or (bool(self.losses) and self.losses[-1] < self.options.stop_loss)

    def clamp(self) -> None:
        """Scale delta back to the longest length that the options allow."""
        if self.options.clamp is not None:
            v_0 = self.v_0.to(self.delta)
            self.delta.data = clamp(self.delta.data, v_0, self.options.clamp)

    def value(self) -> Value:
        """v* = v_0 + delta in float64."""
        delta = self.delta.detach().double()
        return Value(self.v_0.double() + delta, delta, self.losses, self.updates)


class ValueSearch:
    """Equation 4 for several requests at once: v* = v_0 + delta, each delta by Adam.

    Each request has its own loss. The forward passes are shared, and the weights do not change.
    Each pass computes only the values that delta can change: the blocks from *layer* on, the
    positions from the subject's last token on. If memory is full, the rows run in twice as many
    chunks.
    """

    def __init__(
        self,
        lm: Lm,
        layer: int,
        texts: Sequence[Rows],
        starts: Sequence[Tensor],
        options: ValueOptions,
        places: Sequence[Place] = ("mlp",),
    ) -> None:
        """*starts* are the v_0: (H,), or (P, H) for several *places*."""
        self.options = options
        self.each = [
            Descent(v_0, torch.zeros_like(v_0, dtype=lm.working_dtype, requires_grad=True), options)
            for v_0 in starts
        ]
        l2 = options.decay if options.decay_kind == "adam" else 0.0
        self.adam = Adam([one.delta for one in self.each], options.learning_rate, decay=l2)
        rows = sum(len(text.ids) for text in texts)
        self.rows = InPieces(lambda chunks: LossRows(lm, layer, texts, chunks, places), rows)

    def run(self) -> list[Value]:
        """Pass and update until every loss is small or `steps` passes are done."""
        for step in range(self.options.steps):
            last = step == self.options.steps - 1
            update = self.options.last_update or not last
            losses, gradients = self.rows.do(partial(self._pass, update=update))
            for one, loss in losses:
                one.losses.append(loss)
            if losses:
                mean = sum(loss for _, loss in losses) / len(losses)
                tell_step("search for the value", step + 1, self.options.steps, mean)
            if not gradients:
                break
            self._update(gradients)
        return [one.value() for one in self.each]

    def _pass(
        self, rows: LossRows, *, update: bool
    ) -> tuple[list[tuple[Descent, float]], list[tuple[Descent, Tensor]]]:
        """The losses of the searches that are not done, and the gradients to update with.

        No delta changes here, so a pass that does not fit into memory can be repeated.
        """
        numbers = [i for i, one in enumerate(self.each) if not one.done]
        if not numbers:
            return [], []
        found = rows.log_probabilities([one.delta for one in self.each], numbers)
        losses = []
        for one, seen in zip((self.each[i] for i in numbers), found, strict=True):
            losses.append((one, one.loss(seen.of_target, seen.essence)))
            if one.topped is None and seen.topped:
                one.topped = one.updates
        values = [(one, loss.item()) for one, loss in losses]
        going = [
            (one, loss)
            for (one, loss), (_, value) in zip(losses, values, strict=True)
            if value >= self.options.stop_loss and not one.done
        ]
        if not going or not update:
            return values, []
        total = torch.stack([loss for _, loss in going]).sum()
        gradients = torch.autograd.grad(total, [one.delta for one, _ in going])
        return values, [(one, each) for (one, _), each in zip(going, gradients, strict=True)]

    def _update(self, gradients: Sequence[tuple[Descent, Tensor]]) -> None:
        """One step of Adam for the searches that have a gradient, then the clamp."""
        self.adam.step([one.delta for one, _ in gradients], [each for _, each in gradients])
        for one, _ in gradients:
            one.updates += 1
            one.clamp()


def optimise_values(
    lm: Lm,
    layer: int,
    texts: Sequence[Rows],
    starts: Sequence[Tensor],
    options: ValueOptions,
    places: Sequence[Place] = ("mlp",),
) -> list[Value]:
    """v* of each request (equation 4); the arguments are those of `ValueSearch`."""
    with products(lm, options.compute):
        return ValueSearch(lm, layer, texts, starts, options, places).run()
