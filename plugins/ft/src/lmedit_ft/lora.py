"""LoRA (Hu et al. 2021) as an editor: low-rank changes, trained on all facts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lmedit import Dense, Location, LowRank, Method, Update, hookimpl
from lmedit.errors import OptionError
from lmedit_ft.breadth import Losses, train_breadth_first
from lmedit_ft.items import item_of
from lmedit_ft.options import LoraOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit import Delta, Lm, Request, Site

METHOD = "lora"


@hookimpl
def edit_describe() -> Method:
    """LoRA needs no preparation and no subject."""
    return Method(METHOD, "arXiv 2106.09685", LoraOptions, locates_answer=False)


@hookimpl
def edit_locate(lm: Lm, options: LoraOptions) -> Location:
    """The chosen matrices of the chosen blocks."""
    sites = [site for layer in options.blocks_of(lm) for site in sites_of(lm, layer, options)]
    return Location(tuple(sites), {"matrices": [site.parameter for site in sites]})


def sites_of(lm: Lm, layer: int, options: LoraOptions) -> list[Site]:
    """The matrices of the block *layer* that `modules` names; by default the MLP output matrix.

    Raises `OptionError` for a name that the block does not have.
    """
    if not options.modules:
        return [lm.mlp_out(layer)]
    found = []
    start = f"{lm.family.blocks}.{layer}."
    names = [path for path, _ in lm.block(layer).named_modules() if path]
    for wanted in options.modules:
        paths = [path for path in names if path.rpartition(".")[2] == wanted]
        if not paths:
            known = ", ".join(sorted({path.rpartition(".")[2] for path in names}))
            raise OptionError(
                f"lora: {lm.name} has no module {wanted!r} in a block; it has {known}"
            )
        found += [lm.site_of(start + path) for path in paths]
    return found


@hookimpl
def edit_compute_joint(
    lm: Lm, requests: Sequence[Request], locations: Sequence[Location], options: LoraOptions
) -> Update:
    """Train B and A of every matrix, W' = W + (alpha / r) B A, from B = 0 on."""
    sites, scale = locations[0].sites, options.alpha / options.rank
    draw = torch.Generator().manual_seed(options.seed)
    factors = {site: _start(lm, site, options.rank, draw) for site in sites}
    items = [item_of(lm, request, end=options.end_token) for request in requests]
    first = min(options.blocks_of(lm))

    def change_of(site: Site) -> Callable[[Tensor], Tensor]:
        B, A = factors[site]
        return lambda x: scale * (x.to(A.dtype) @ A.T @ B.T)

    losses = Losses(lm, items, first, {site: change_of(site) for site in sites})
    notes = train_breadth_first(losses, [t for pair in factors.values() for t in pair], options)
    deltas = {site: _delta(scale * B.detach(), A.detach()) for site, (B, A) in factors.items()}
    return Update(deltas, {"facts": len(requests), **notes})


def _start(lm: Lm, site: Site, rank: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """B (d_out, r) of zeros and A (r, d_in), Kaiming-uniform with a = sqrt(5)."""
    rows, columns = lm.weight(site).shape
    bound = math.sqrt(6 / ((1 + 5) * columns))
    A = (2 * torch.rand(rank, columns, generator=draw, dtype=torch.float64) - 1) * bound
    A = A.to(lm.device_of(site), lm.working_dtype)
    return A.new_zeros(rows, rank).requires_grad_(), A.requires_grad_()


def _delta(left: Tensor, right: Tensor) -> Delta:
    """The factors, or the matrix where that is smaller."""
    rows, columns, rank = left.shape[0], right.shape[1], right.shape[0]
    low = LowRank(left, right)
    return low if rank * (rows + columns) <= rows * columns else Dense(low.dense())
