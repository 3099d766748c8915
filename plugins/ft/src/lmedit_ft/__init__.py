"""FT: fine-tuning of one MLP matrix, the ROME paper's baseline, as an lmedit method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Dense, Location, Method, Update, hookimpl
from lmedit.replay import keep
from lmedit.trace import changed
from lmedit_ft.equations import changed_output, negative_log_likelihood, within
from lmedit_ft.options import FtLOptions, FtOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmedit import Lm, Request

PAPER = "arXiv 2012.00363"


@hookimpl
def edit_describe() -> Method:
    """FT needs no preparation."""
    return Method("ft", PAPER, FtOptions)


@hookimpl
def edit_locate(lm: Lm, options: FtOptions) -> Location:
    """The MLP output matrix of the chosen layer, and its bias."""
    layer = int(options.layer or 0)
    bias = lm.mlp_out_bias(layer) if options.bias else None
    sites = (lm.mlp_out(layer),) if bias is None else (lm.mlp_out(layer), bias)
    origin = options.layer_origin(lm, "ft-l" if isinstance(options, FtLOptions) else "ft")
    return Location(sites, {"layer": layer, "layer from": origin})


@hookimpl
def edit_compute(lm: Lm, request: Request, location: Location, options: FtOptions) -> Update:
    """Adam on the located matrix (and bias) until the new answer's loss is small."""
    Deltas = [
        torch.zeros(lm.weight(site).shape, dtype=lm.working_dtype, device=lm.device)
        for site in location.sites
    ]  # fmt: skip
    losses = _train(lm, request, location.evidence["layer"], Deltas, options)
    updates = sum(loss >= options.stop_loss for loss in losses)
    notes = {"steps": updates, "loss_first": losses[0], "loss_last": losses[-1]}
    return Update(dict(zip(location.sites, map(Dense, Deltas), strict=True)), notes)


def _train(
    lm: Lm, request: Request, layer: int, Deltas: list[Tensor], options: FtOptions
) -> list[float]:
    """Train *Deltas* in place, from zero; returns the loss (nats) before each step."""
    for Delta in Deltas:
        Delta.requires_grad_(True)
    optimiser = torch.optim.Adam(Deltas, lr=options.learning_rate, weight_decay=0.0, fused=True)
    loss_of = _loss(lm, request, layer, options)
    losses: list[float] = []
    for _ in range(options.steps):
        loss = loss_of(Deltas)
        losses.append(loss.item())
        if losses[-1] < options.stop_loss:
            break
        for Delta, gradient in zip(Deltas, torch.autograd.grad(loss, Deltas), strict=True):
            Delta.grad = gradient
        optimiser.step()
        if options.epsilon is not None:
            for Delta in Deltas:
                Delta.data = within(Delta.data, options.epsilon)
    for Delta in Deltas:
        Delta.requires_grad_(False).grad = None
    return losses


def _loss(
    lm: Lm, request: Request, layer: int, options: FtOptions
) -> Callable[[list[Tensor]], Tensor]:
    """The new answer's loss as a function of the Deltas; the blocks below are run only once.

    Its target tokens are read where the objective says: all at the prompt's last token, or each
    behind the ones before it.
    """
    prompt, target = lm.with_target(request.text, request.target_new)
    forced = options.objective == "target_new"
    kept = keep(lm, [prompt + target[:-1] if forced else prompt], [0], layer)
    last = len(prompt) - 1
    at = range(last, last + len(target)) if forced else [last]
    ids = torch.tensor(target, device=lm.device)[:, None]

    def loss(Deltas: list[Tensor]) -> Tensor:
        Delta, Delta_b = Deltas[0], Deltas[1] if len(Deltas) > 1 else None
        with changed(
            lm.mlp_out_module(layer), lambda x, out: changed_output(out, x, Delta, Delta_b)
        ):
            logits = kept.logits(at)[0]  # (T, V), or (1, V)
        log_p = logits.to(lm.working_dtype).log_softmax(-1).expand(len(target), -1)
        return negative_log_likelihood(log_p.gather(1, ids).squeeze(1))

    return loss
