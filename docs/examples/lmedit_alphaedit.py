"""lmedit_alphaedit.py: AlphaEdit (Fang et al. 2025, arXiv 2410.02355), one fact at one layer.

W (H, D) is a block's MLP output matrix, k (D,) the key of the subject's last token, v* (H,) the
value that brings the new answer, r = v* - W k. K_0 are the keys of ordinary text, whose values
shall stay: the change goes only where they are not, along P.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from lmedit import (
    Checkpoint,
    Corpus,
    Lm,
    Location,
    LowRank,
    Method,
    Prepared,
    Request,
    Update,
    hookimpl,
)
from lmedit.errors import NotPreparedError
from lmedit.layers import LayerOptions
from lmedit.replay import keep
from lmedit.stats import Counting, moments_of
from lmedit.trace import changed

# --- the paper's equations


def null_space(C: Tensor, threshold: float) -> Tensor:
    """U (D, d): the eigenvectors of C = K_0 K_0^T / n with eigenvalues below it; P = U U^T."""
    values, vectors = torch.linalg.eigh(C)
    return vectors[:, values < threshold]


def projected_change(r: Tensor, k: Tensor, U: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Delta P = r k^T P (k k^T P + weight I)^-1, which is r (P k)^T / (k^T P k + weight)."""
    Pk = U @ (U.T @ k)
    return r[:, None], Pk[None] / (k @ Pk + weight)


# --- options and hooks


class AlphaEditOptions(LayerOptions):
    """What can be set; the layer may be tuned (lmedit tune)."""

    prepares = ("layer", "samples", "threshold")

    samples: int = Field(default=1000, ge=1, description="documents that C is counted over")
    threshold: float = Field(default=2e-2, gt=0, description="eigenvalues of C taken for zero")
    weight: float = Field(default=1.0, ge=0, description="of |Delta P|^2 beside the new fact")
    steps: int = Field(default=20, ge=1, description="of Adam, for the value")
    learning_rate: float = Field(default=0.5, gt=0, description="Adam's")
    clamp: float = Field(default=4.0, gt=0, description="longest v* - v in |v|")

    def depth(self, lm: Lm) -> float:
        del lm
        return 0.3


@hookimpl
def edit_describe() -> Method:
    return Method("alphaedit", "arXiv 2410.02355", AlphaEditOptions, prepares_on="text")


@hookimpl
def edit_prepare(
    lm: Lm, options: AlphaEditOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """U, once for a model and a layer; C is counted and kept by lmedit.stats."""
    if corpus is None:
        raise NotPreparedError("alphaedit: C needs text; give --corpus NAME|FILE")
    layer = options.block
    counting = Counting(options.samples)
    moment = moments_of(lm, [layer], corpus, counting, checkpoint)[layer].moment()
    U = null_space(moment.sum / moment.tokens, options.threshold)
    if not U.shape[1]:
        raise NotPreparedError("alphaedit: no direction is free; give a larger -o threshold")
    return Prepared({"U": U}, {"layer": layer, "free": U.shape[1], "of": U.shape[0]})


@hookimpl
def edit_locate(lm: Lm, options: AlphaEditOptions) -> Location:
    layer = options.block
    return Location((lm.mlp_out(layer),), {"layer": layer})


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: AlphaEditOptions, prepared: Prepared
) -> Update:
    (site,) = location.sites
    k, r, losses = new_value(lm, request, options.block, options)
    U = prepared.tensors["U"].to(k.device)
    left, right = projected_change(r, k, U, options.weight)
    delta = LowRank(left.to(lm.working_dtype), right.to(lm.working_dtype))
    return Update({site: delta}, {"losses": losses})


# --- the value


def new_value(
    lm: Lm, request: Request, layer: int, options: AlphaEditOptions
) -> tuple[Tensor, Tensor, list[float]]:
    """k (D,) and r = v* - v (H,) in float64: Adam on r, until the answer comes; and its losses.

    Blocks below *layer* and tokens before the subject's last are run once (lmedit.replay).
    """
    prompt, target = lm.with_target(request.text, request.target_new)
    _, start = lm.subject_last(request.prompt, request.subject)
    kept = keep(lm, [prompt + target[:-1]], [start], layer)
    at = [len(prompt) - 1 - start + i for i in range(len(target))]
    r = torch.zeros(lm.hidden_size, dtype=lm.working_dtype, device=lm.device, requires_grad=True)
    seen: list[Tensor] = []

    def add(x: Tensor, out: Tensor) -> Tensor:
        ins, outs = (t.reshape(kept.shape[1], -1) for t in (x, out))
        seen[:] = [ins[0].detach().double(), outs[0].detach().double()]
        return torch.cat([outs[:1] + r.to(outs), outs[1:]]).reshape(out.shape)

    adam, losses = torch.optim.Adam([r], lr=options.learning_rate), []
    with changed(lm.mlp_out_module(layer), add):
        for _ in range(options.steps):
            log_p = kept.logits(at)[0].to(r.dtype).log_softmax(-1)
            loss = -log_p[range(len(target)), target].mean()
            losses.append(loss.item())
            (r.grad,) = torch.autograd.grad(loss, r)
            adam.step()
            longest = options.clamp * seen[1].norm()
            r.data *= min(1.0, float(longest / r.data.norm()))
    return seen[0], r.detach().double(), losses
