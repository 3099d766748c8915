"""ROME's value by whole forward passes over all contexts: what the replay must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmedit.trace import changed
from lmedit.values.equations import clamp, decay, essence_drift, target_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request


def value(
    lm: Lm, layer: int, request: Request, templates: Sequence[str], v_0: Tensor, options: Any
) -> Tensor:
    """delta (H,): every step runs all blocks on all tokens of all rows, with logits everywhere.

    For the loss of the defaults: the drift at the subject, the penalty in the loss.
    """
    target = lm.with_target(request.text, request.target_new)[1]
    found = [lm.subject_last(request.prompt, request.subject, t) for t in templates]
    essence, essence_at = lm.subject_last("{} is a", request.subject)
    rows = [*(ids + target[:-1] for ids, _ in found), essence]
    places = torch.tensor([*(at for _, at in found), essence_at])
    batch, every = lm.batch(rows), torch.arange(len(rows))
    ends = torch.tensor([len(ids) - 1 for ids, _ in found])[:, None] + torch.arange(len(target))
    delta = torch.zeros(len(v_0), dtype=lm.working_dtype, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=options.learning_rate)
    first: Tensor | None = None
    for step in range(options.steps):

        def add(_: Tensor, out: Tensor) -> Tensor:
            whole = out.reshape(*batch.ids.shape, -1).clone()
            whole[every, places] = whole[every, places] + delta.to(whole)
            return whole.reshape(out.shape)

        with changed(lm.mlp_out_module(layer), add):
            log_p = lm.logits(batch).to(delta.dtype).log_softmax(-1)
        now = log_p[-1, essence_at]
        first = now.detach() if first is None else first
        of_target = log_p[every[:-1, None], ends, torch.tensor(target)]
        loss = target_loss(of_target) + options.kl_factor * essence_drift(
            now, first, per_entry=False
        )
        loss = loss + options.decay * decay(delta, v_0.to(delta))
        if loss.item() < options.stop_loss or step == options.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimiser.step()
        delta.data = clamp(delta.data, v_0.to(delta), options.clamp)
    return delta.detach()
