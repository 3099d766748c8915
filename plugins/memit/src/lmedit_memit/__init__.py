"""MEMIT (Meng et al. 2023): one change of several layers for many facts, as an lmedit method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit_memit.joining import joint_update
from lmedit_memit.options import MemitOptions
from lmedit_memit.plan import edit_plan
from lmedit_memit.preparing import factors_of, find_location
from lmedit_memit.solving import damped_metric, find_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request


__all__ = ["edit_compute_joint", "edit_describe", "edit_locate", "edit_plan", "edit_prepare"]


@hookimpl
def edit_describe() -> Method:
    """MEMIT needs the second moments of the keys of its layers, and the subject of each fact."""
    return Method(
        "memit",
        "arXiv 2210.07229",
        MemitOptions,
        prepares_on="text",
        needs_subject=True,
        locates_answer=False,
    )


@hookimpl
def edit_prepare(
    lm: Lm, options: MemitOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """The Cholesky factors of C = E[k k^T] at the edited layers, counted in one pass."""
    more = options.prepared_from().get("ridge / weight", 0.0)
    return factors_of(lm, "memit", options, corpus, checkpoint, more)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: MemitOptions) -> Location:
    """The MLP output matrices of the layers; the keys stand at the subject's last token."""
    return find_location(lm, request, options, "memit")


@hookimpl
def edit_compute_joint(
    lm: Lm,
    requests: Sequence[Request],
    options: MemitOptions,
    prepared: Prepared,
    carried: Sequence[Mapping[str, Tensor]],
) -> Update:
    """W' = W + R K^T (lambda C + K K^T)^-1 at each layer, R shared among the layers left."""
    weight = options.weight
    assert weight is not None
    metric_of = damped_metric(prepared, weight)
    known = find_known(prepared, "cholesky")
    return joint_update(
        lm, requests, options, metric_of, carried, known=known, spread=options.spread
    )
