"""newmethod as an lmedit method: its hooks, in the order of their calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Location, LowRank, Method, Update, hookimpl
from lmedit.trace import changed
from lmedit_newmethod.equations import least_change, step
from lmedit_newmethod.options import NewmethodOptions

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit import Lm, Request


@hookimpl
def edit_describe() -> Method:
    """Name, paper and options. Importing and describing must be quick."""
    return Method("newmethod", "no paper yet", NewmethodOptions, needs_subject=True)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: NewmethodOptions) -> Location:
    """The MLP output matrix of the layer. `lmedit locate` prints the evidence."""
    layer = options.block
    _, index = lm.subject_last(request.prompt, request.subject)
    return Location((lm.mlp_out(layer),), {"layer": layer, "subject's last": index})


@hookimpl
def edit_compute(lm: Lm, request: Request, location: Location, options: NewmethodOptions) -> Update:
    """Move the value of the subject's key towards the new answer, in one step."""
    (site,) = location.sites
    k, v, gradient = at_subject(lm, request, options.block)
    left, right = least_change(step(gradient, options.length * v.norm()), k)
    return Update({site: LowRank(left, right)}, {"gradient": float(gradient.norm())})


def at_subject(lm: Lm, request: Request, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """k (D,), v (H,) and the gradient (H,) of the answer's loss by v, at the subject's last token.

    The model is not changed: `add` adds zeros to the MLP's output during the forward pass.
    """
    prompt, target = lm.with_target(request.text, request.target_new)
    _, index = lm.subject_last(request.prompt, request.subject)
    ids = prompt + target[:-1]
    delta = torch.zeros(lm.hidden_size, dtype=lm.working_dtype, device=lm.device)
    delta.requires_grad_()
    seen: list[Tensor] = []

    def add(x: Tensor, out: Tensor) -> Tensor:
        seen[:] = (t.reshape(len(ids), -1)[index].detach() for t in (x, out))
        at = torch.arange(len(ids), device=out.device) == index
        return out + (at[:, None] * delta).to(out).reshape(out.shape)

    with changed(lm.mlp_out_module(layer), add):
        logits = lm.logits(lm.batch([ids]))[0, len(prompt) - 1 :].to(lm.working_dtype)
    log_p = logits.log_softmax(-1)[range(len(target)), target]
    (gradient,) = torch.autograd.grad(-log_p.mean(), delta)
    k, v = (t.to(lm.working_dtype) for t in seen)
    return k, v, gradient
