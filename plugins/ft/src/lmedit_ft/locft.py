"""LocFT-BF (Yang et al. 2026): breadth-first fine-tuning of one matrix on all facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Dense, Location, Method, Update, hookimpl
from lmedit_ft.breadth import Losses, train_breadth_first
from lmedit_ft.items import item_of
from lmedit_ft.options import LocFtOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request

METHOD = "locft-bf"


@hookimpl
def edit_describe() -> Method:
    """LocFT-BF needs no preparation and no subject."""
    return Method(METHOD, "arXiv 2509.22072", LocFtOptions, locates_answer=False)


@hookimpl
def edit_locate(lm: Lm, options: LocFtOptions) -> Location:
    """The MLP output matrix of the layer."""
    layer = options.block
    evidence = {"layer": layer, "layer from": options.layer_origin(lm, METHOD)}
    return Location((lm.mlp_out(layer),), evidence)


@hookimpl
def edit_compute_joint(
    lm: Lm, requests: Sequence[Request], locations: Sequence[Location], options: LocFtOptions
) -> Update:
    """Train one matrix on all requests, epoch after epoch."""
    (site,) = locations[0].sites
    Delta = torch.zeros(
        lm.weight(site).shape, dtype=lm.working_dtype, device=lm.device_of(site)
    ).requires_grad_()
    items = [item_of(lm, request, end=options.end_token) for request in requests]

    def change(x: Tensor) -> Tensor:
        return x.to(Delta.dtype) @ Delta.T

    losses = Losses(lm, items, options.block, {site: change})
    notes = train_breadth_first(losses, [Delta], options)
    return Update({site: Dense(Delta.detach())}, {"facts": len(requests), **notes})
