"""AlphaEdit (Fang et al. 2025): MEMIT within the directions that ordinary keys leave free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit.stats import name_of
from lmedit_memit.joining import joint_update
from lmedit_memit.options import AlphaEditOptions
from lmedit_memit.plan import edit_plan
from lmedit_memit.preparing import directions_of, find_location
from lmedit_memit.renewing import keys_at_renewal, renew
from lmedit_memit.solving import Metric, find_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request
    from lmedit.stats import Place


__all__ = ["edit_compute_joint", "edit_describe", "edit_locate", "edit_plan", "edit_prepare"]


@hookimpl
def edit_describe() -> Method:
    """AlphaEdit needs the free directions of its layers, and the subject of each fact."""
    return Method(
        "alphaedit",
        "arXiv 2410.02355",
        AlphaEditOptions,
        prepares_on="text",
        needs_subject=True,
        locates_answer=False,
    )


@hookimpl
def edit_prepare(
    lm: Lm, options: AlphaEditOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """The eigenvectors of C with small eigenvalues, at each edited layer."""
    return directions_of(lm, options, corpus, checkpoint)


@hookimpl
def edit_locate(
    lm: Lm, request: Request, options: AlphaEditOptions, prepared: Prepared
) -> Location:
    """The MLP output matrices of the layers, with the share of directions that is free."""
    return find_location(lm, request, options, "alphaedit", prepared.facts.get("free"))


@hookimpl
def edit_compute_joint(
    lm: Lm,
    requests: Sequence[Request],
    options: AlphaEditOptions,
    prepared: Prepared,
    carried: Sequence[Mapping[str, Tensor]],
) -> Update:
    """W' = W + R K^T U (U^T (K K^T + B B^T) U + ridge I)^-1 U^T, in a symmetric form."""

    def metric_of(place: Place, device: torch.device) -> Metric:
        facts = prepared.facts["free"][name_of(place)]
        ridge = options.ridge or options.ridge_share * facts["energy"]
        V = prepared.tensors[f"vectors.{name_of(place)}"].to(device)
        if not options.weight:
            return Metric.of_projector(V, ridge, complement=facts["complement"])
        values = prepared.tensors[f"values.{name_of(place)}"].to(device)
        if options.renews and options.renew_after:
            B = keys_at_renewal(carried, place, options.renew_after)
            if B is not None:
                return renew(V, values, B, options, ridge)
        d = facts["free"]
        return Metric.of_directions(V[:, :d], values[:d], options.weight, ridge)

    known = find_known(prepared, "vectors")
    return joint_update(
        lm, requests, options, metric_of, carried, known=known, spread=options.spread
    )
