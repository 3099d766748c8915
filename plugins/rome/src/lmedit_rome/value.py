"""Key selection and value optimisation (section 3.1, equations 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lmedit.replay import keep
from lmedit.trace import captured, changed
from lmedit_rome.equations import clamped, decay, drift, target_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit_rome.options import RomeOptions

ESSENCE = "{} is a"


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
    found = [lm.subject_last(request.prompt, request.subject, t) for t in ("{}", *templates)]
    batch = lm.batch([ids for ids, _ in found])
    with captured(lm.mlp_out_module(layer), stop=True) as box:
        lm.logits(batch)
    rows, at = range(len(found)), [index for _, index in found]
    keys = box.input.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, D)
    outs = box.output.reshape(*batch.ids.shape, -1)[rows, at].double()  # (1 + N, H)
    return Keys(keys[0], keys[1:].mean(0), outs[0], outs[1:].mean(0))


@dataclass(frozen=True)
class Rows:
    """The texts of the value's loss as token ids, and what is read where.

    The last row is the essence prompt "{subject} is a". `start` is each row's subject's last
    token; positions count from there.
    """

    ids: list[list[int]]
    start: list[int]
    target: list[int]
    target_at: list[list[int]]
    essence_at: int


@dataclass
class Value:
    """v* (H,) in float64, and how it was found: the loss (nats) at every step."""

    v_star: Tensor
    delta: Tensor
    losses: list[float] = field(default_factory=list)


def rows_of(lm: Lm, request: Request, templates: Sequence[str], options: RomeOptions) -> Rows:
    """Each context with the prompt and all target tokens but the last; then the essence prompt."""
    target = lm.with_target(request.text, request.target_new)[1]
    if options.target_tokens == "first":
        target = target[:1]
    if options.value_contexts == "bare":
        templates = ["{}"]
    found = [lm.subject_last(request.prompt, request.subject, t) for t in templates]
    essence, at = lm.subject_last(ESSENCE, request.subject)
    return Rows(
        ids=[*(ids + target[:-1] for ids, _ in found), essence],
        start=[*(index for _, index in found), at],
        target=target,
        target_at=[
            [len(ids) - 1 - index + step for step in range(len(target))] for ids, index in found
        ],
        essence_at=0 if options.kl_position == "subject_last" else len(essence) - 1 - at,
    )


def optimise_value(lm: Lm, layer: int, rows: Rows, v_0: Tensor, options: RomeOptions) -> Value:
    """v* = v_0 + delta, with delta by Adam on the loss of equation 4; the weights stay as they are.

    *v_0* (H,) is the MLP's output for the bare prompt. The last forward pass is never followed
    by an update, so there are at most steps - 1 of them. Only what delta can reach is computed
    again at each step: the blocks from *layer* on, the positions from the subject's last token.
    """
    run = _Run(lm, layer, rows)
    delta = torch.zeros(len(v_0), dtype=lm.working_dtype, device=lm.device, requires_grad=True)
    l2 = options.decay if options.decay_kind == "adam" else 0.0
    optimiser = torch.optim.Adam([delta], lr=options.learning_rate, weight_decay=l2)
    value = Value(v_0, delta)
    log_p_0: Tensor | None = None
    for step in range(options.steps):
        log_p, essence = run.log_probabilities(delta)
        log_p_0 = essence.detach() if log_p_0 is None else log_p_0
        loss = _loss(log_p, essence, log_p_0, delta, v_0, options)
        value.losses.append(loss.item())
        if value.losses[-1] < options.stop_loss or step == options.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimiser.step()
        if options.clamp is not None:
            delta.data = clamped(delta.data, v_0.to(delta), options.clamp)
    value.delta = delta.detach().double()
    value.v_star = v_0.double() + value.delta.to(v_0.device)
    return value


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


class _Run:
    """The rows, run up to the subject's last token and the edited layer; the rest on demand."""

    def __init__(self, lm: Lm, layer: int, rows: Rows) -> None:
        self.module = lm.mlp_out_module(layer)
        self.kept = keep(lm, rows.ids, rows.start, layer)
        self.at = sorted({rows.essence_at, *(p for at in rows.target_at for p in at)})
        place = {position: i for i, position in enumerate(self.at)}
        self.essence = place[rows.essence_at]
        self.steps = torch.tensor([[place[p] for p in at] for at in rows.target_at])  # (N, T)
        self.target = torch.tensor(rows.target, device=lm.device).expand(len(self.steps), -1)

    def log_probabilities(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """With *delta* at the subject: log P of the targets (N, T), and of all after essence."""

        def add_delta(_: Tensor, out: Tensor) -> Tensor:
            rows = out.reshape(*self.kept.shape, -1)  # (B, S, H)
            moved = rows[:, :1] + delta.to(rows)
            return torch.cat([moved, rows[:, 1:]], dim=1).reshape(out.shape)

        with changed(self.module, add_delta):
            logits = self.kept.logits(self.at).to(delta.dtype)
        every = torch.arange(len(self.steps))[:, None]
        log_p = logits[every, self.steps].log_softmax(-1)  # (N, T, V)
        essence = logits[-1, self.essence].log_softmax(-1)
        return log_p.gather(2, self.target[..., None]).squeeze(2), essence
