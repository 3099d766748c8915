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


def optimise_values(
    lm: Lm, layer: int, texts: Sequence[Rows], starts: Sequence[Tensor], options: RomeOptions
) -> list[Value]:
    """v* = v_0 + delta of each request, its delta by Adam on its own loss of equation 4.

    *starts* are the v_0 (H,), the MLP's outputs for the bare prompts. The forward passes are
    shared, the weights stay as they are. The last pass is never followed by an update, so there
    are at most steps - 1 of them. Only what delta can reach is computed again at each step: the
    blocks from *layer* on, the positions from the subject's last token.
    """
    run = _Run(lm, layer, texts)
    deltas = [
        torch.zeros(len(v_0), dtype=lm.working_dtype, device=v_0.device, requires_grad=True)
        for v_0 in starts
    ]
    l2 = options.decay if options.decay_kind == "adam" else 0.0
    optimiser = torch.optim.Adam(deltas, lr=options.learning_rate, weight_decay=l2)
    values = [Value(v_0, delta) for v_0, delta in zip(starts, deltas, strict=True)]
    left = list(range(len(values)))
    first: list[Tensor] = []
    for step in range(options.steps):
        found = run.log_probabilities(deltas)
        first = first or [essence.detach() for _, essence in found]
        losses = {
            i: _loss(*found[i], first[i], deltas[i], starts[i], options) for i in left
        }  # fmt: skip
        for i, loss in losses.items():
            values[i].losses.append(loss.item())
        left = [i for i in left if values[i].losses[-1] >= options.stop_loss]
        if not left or step == options.steps - 1:
            break
        optimiser.zero_grad()  # Adam passes over what has no gradient
        moving = [deltas[i] for i in left]
        gradients = torch.autograd.grad(torch.stack([losses[i] for i in left]).sum(), moving)
        for delta, gradient in zip(moving, gradients, strict=True):
            delta.grad = gradient
        optimiser.step()
        if options.clamp is not None:
            for i in left:
                deltas[i].data = clamped(deltas[i].data, starts[i].to(deltas[i]), options.clamp)
    for value in values:
        value.delta = value.delta.detach().double()
        value.v_star = value.v_star.double() + value.delta.to(value.v_star.device)
    return values


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
    """All requests' rows, run up to the subject's last token and the edited layer; then the rest.

    `places` are read from the logits: of each request first every context's target tokens, then
    the one after the essence prompt.
    """

    def __init__(self, lm: Lm, layer: int, texts: Sequence[Rows]) -> None:
        self.module = lm.mlp_out_module(layer)
        ids = [row for rows in texts for row in rows.ids]
        self.kept = keep(lm, ids, [at for rows in texts for at in rows.start], layer)
        self.request_of: list[int] = []
        self.targets: list[Tensor] = []
        places: list[tuple[int, int]] = []
        for number, rows in enumerate(texts):
            top = len(self.request_of)
            places += [(top + j, at) for j, each in enumerate(rows.target_at) for at in each]
            places.append((top + len(rows.target_at), rows.essence_at))
            self.request_of += [number] * len(rows.ids)
            target = torch.tensor(rows.target, device=lm.device)
            self.targets.append(target.expand(len(rows.target_at), -1))  # (N, T)
        self.rows, self.at = torch.tensor(places, device=lm.device).T

    def log_probabilities(self, deltas: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """With the *deltas* at the subjects: log P of the targets (N, T), and of all after essence.

        For each request.
        """
        of_rows = torch.stack(list(deltas))[self.request_of][:, None]  # (B, 1, H)

        def add_delta(_: Tensor, out: Tensor) -> Tensor:
            rows = out.reshape(*self.kept.shape, -1)  # (B, S, H)
            moved = rows[:, :1] + of_rows.to(rows)
            return torch.cat([moved, rows[:, 1:]], dim=1).reshape(out.shape)

        with changed(self.module, add_delta):
            logits = self.kept.gathered(self.rows, self.at).to(deltas[0].dtype)
        sizes = [target.numel() + 1 for target in self.targets]
        parts = torch.split(logits.log_softmax(-1), sizes)
        found = []
        for log_p, target in zip(parts, self.targets, strict=True):
            of_target = log_p[:-1].reshape(*target.shape, -1)  # (N, T, V)
            found.append((of_target.gather(2, target[..., None]).squeeze(2), log_p[-1]))
        return found
