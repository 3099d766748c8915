"""Key selection and value optimisation (section 3.1, equations 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from lmedit.memory import InPieces
from lmedit.trace import captured
from lmedit_rome.equations import clamped, decay, drift, target_loss
from lmedit_rome.rows import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit_rome.options import RomeOptions
    from lmedit_rome.rows import Rows


@dataclass(frozen=True)
class Keys:
    """At the subject's last token: what goes into W, and what comes out (with the bias)."""

    bare: Tensor  # (D,) k_b: of the prompt alone
    mean: Tensor  # (D,) the mean over the contexts
    bare_out: Tensor  # (H,) y_b = W k_b + b
    mean_out: Tensor  # (H,) the mean of the outputs over the contexts


@torch.no_grad()
def select_keys(lm: Lm, layer: int, request: Request, templates: Sequence[str]) -> Keys:
    """k* = 1/N sum_j k(x_j + p) at the subject's last token (equation 3), in float64."""
    once = list(dict.fromkeys(("{}", *templates)))
    found = [lm.subject_last(request.prompt, request.subject, template) for template in once]
    batch = lm.batch([ids[: index + 1] for ids, index in found])
    with captured(lm.mlp_out_module(layer), stop=True) as box:
        lm.logits(batch)
    rows, at = range(len(found)), [index for _, index in found]
    keys = box.input.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, D)
    outs = box.output.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, H)
    of_mean = [once.index(template) for template in templates]
    return Keys(keys[0], keys[of_mean].mean(0), outs[0], outs[of_mean].mean(0))


@dataclass
class Value:
    """v* (H,) in float64, and how it was found: the loss (nats) at every step."""

    v_star: Tensor
    delta: Tensor
    losses: list[float] = field(default_factory=list)

    def finished(self) -> Value:
        """The value with its delta added, in float64."""
        delta = self.delta.detach().double()
        return Value(self.v_star.double() + delta, delta, self.losses)


def optimise_values(
    lm: Lm, layer: int, texts: Sequence[Rows], starts: Sequence[Tensor], options: RomeOptions
) -> list[Value]:
    """v* = v_0 + delta of each request, its delta by Adam on its own loss of equation 4.

    *starts* are the v_0 (H,), the MLP's outputs for the bare prompts. The forward passes are
    shared, the weights stay as they are. The last pass is never followed by an update, so there
    are at most steps - 1 of them. Only what delta can reach is computed again at each step: the
    blocks from *layer* on, the positions from the subject's last token. Where memory ends, the
    rows are run in twice as many pieces.
    """
    deltas = [
        torch.zeros(len(v_0), dtype=lm.working_dtype, device=v_0.device, requires_grad=True)
        for v_0 in starts
    ]
    l2 = options.decay if options.decay_kind == "adam" else 0.0
    optimiser = torch.optim.Adam(deltas, lr=options.learning_rate, weight_decay=l2)
    values = [Value(v_0, delta) for v_0, delta in zip(starts, deltas, strict=True)]
    left = list(range(len(values)))
    before: list[Tensor] = []

    def passed(run: Run, *, last: bool) -> tuple[dict[int, Tensor], list[Tensor]]:
        """The losses of those that are left, and the gradients of those that go on."""
        found = run.log_probabilities(deltas)
        first = before or [essence.detach() for _, essence in found]
        losses = {i: _loss(*found[i], first[i], deltas[i], starts[i], options) for i in left}
        before[:] = first
        going = _going(losses, options)
        if not going or last:
            return losses, []
        total = torch.stack([losses[i] for i in going]).sum()
        return losses, list(torch.autograd.grad(total, [deltas[i] for i in going]))

    runs = InPieces(lambda pieces: Run(lm, layer, texts, pieces), sum(len(t.ids) for t in texts))
    for step in range(options.steps):
        losses, gradients = runs.do(partial(passed, last=step == options.steps - 1))
        for i, loss in losses.items():
            values[i].losses.append(loss.item())
        left = _going(losses, options)
        if not gradients:
            break
        optimiser.zero_grad()  # Adam passes over what has no gradient
        for i, gradient in zip(left, gradients, strict=True):
            deltas[i].grad = gradient
        optimiser.step()
        if options.clamp is not None:
            for i in left:
                deltas[i].data = clamped(deltas[i].data, starts[i].to(deltas[i]), options.clamp)
    return [value.finished() for value in values]


def _going(losses: Mapping[int, Tensor], options: RomeOptions) -> list[int]:
    """The requests whose loss is not yet small."""
    return [i for i, loss in losses.items() if loss.item() >= options.stop_loss]


def _loss(
    log_p: Tensor, essence: Tensor, log_p_0: Tensor, delta: Tensor, v_0: Tensor,
    options: RomeOptions,
) -> Tensor:  # fmt: skip
    """Equation 4, with the released code's penalty on delta where the options ask for it."""
    loss = target_loss(log_p)
    if options.kl_factor:
        per_entry = options.kl_reduction == "mean"
        loss = loss + options.kl_factor * drift(essence, log_p_0, per_entry=per_entry)
    if options.decay_kind == "loss" and options.decay:
        loss = loss + options.decay * decay(delta, v_0.to(delta))
    return loss
