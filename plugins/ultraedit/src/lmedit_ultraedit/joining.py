"""The joint edit of UltraEdit: factors, moments of all edits so far, one change per matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Location, LowRank, Update
from lmedit.hyper import answer_factors, row_of, smaller_of
from lmedit_ultraedit.equations import asked_shifts, normalise, shift_factors, whiten
from lmedit_ultraedit.statistics import fold, read_moments, rows_at, seen_in, shape_of, tensors_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Delta, Lm, Request
    from lmedit.hyper import Factors
    from lmedit_ultraedit.equations import Moments
    from lmedit_ultraedit.options import NamedMatrices, UltraEditOptions
    from lmedit_ultraedit.statistics import Shape

FEW = 10
"""With fewer answer tokens the moments say little; the edit tells so."""


def find_location(lm: Lm, options: NamedMatrices) -> Location:
    """The matrices of the options, the same for every fact."""
    sites = options.sites(lm)
    evidence = {
        "matrices": [site.parameter for site in sites],
        "matrices from": options.origin,
    }
    return Location(sites, evidence)


def joint_update(
    lm: Lm,
    requests: Sequence[Request],
    options: UltraEditOptions,
    earlier: Sequence[Mapping[str, Tensor]],
) -> Update:
    """One change of each matrix for all *requests*; *earlier* hold moments of earlier rows."""
    sites = options.sites(lm)
    rows = [row_of(lm, request.text, request.target_new) for request in requests]
    factors = answer_factors(lm, rows, sites, options.blocks[0])
    own = seen_in(factors, spread=options.whitened)
    moments = fold([*(read_moments(each, list(own)) for each in earlier), own])
    deltas = {
        site: delta_of(each, moments[shape_of(each)], options) for site, each in factors.items()
    }
    tokens = int(factors[sites[0]].mask.sum())
    notes = {"facts": len(requests), "tokens": tokens, "remarks": remarks_on(own, moments)}
    return Update(deltas, notes, tensors_of(own))


def delta_of(factors: Factors, moments: Moments, options: UltraEditOptions) -> Delta:
    """D^T (H H^T + ridge I)^-1 H with D = -rate |h^|^2 g^, in float32."""
    h, g = rows_at(factors)
    d_in = h.shape[1]
    hat = normalise(torch.cat([h, g], 1), moments)
    g_hat = whiten(g, moments) if options.whitened else hat[:, d_in:]
    rate = hat.new_tensor(options.rate_for(g.shape[1], d_in))
    D = asked_shifts(rate, hat[:, :d_in], hat[:, :d_in], g_hat)
    left, right = shift_factors(h, D, hat.new_tensor(options.ridge))
    return smaller_of(LowRank(left.float(), right.float()))


def remarks_on(own: Mapping[Shape, Moments], moments: Mapping[Shape, Moments]) -> list[str]:
    """A sentence if there are too few rows to normalise by."""
    count = min(int(each.number) for each in moments.values())
    if count >= FEW or not own:
        return []
    what = f"the gradients are normalised by {count} token(s) only, so the edit says little"
    return [f"{what}; edit more facts together (--facts FILE), or give -o warm_up 100"]
