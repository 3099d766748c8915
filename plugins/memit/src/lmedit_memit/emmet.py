"""EMMET (Gupta et al. 2024): one layer, the new answers as exact constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit_memit.joining import joint_update, memory_of, name_of_fact
from lmedit_memit.options import EmmetOptions
from lmedit_memit.plan import edit_plan
from lmedit_memit.preparing import factors_of, find_location
from lmedit_memit.solving import (
    check_independent,
    damped_metric,
    equal_keys,
    find_known,
    too_many,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Checkpoint, Corpus, Lm, Request


__all__ = ["edit_compute_joint", "edit_describe", "edit_locate", "edit_plan", "edit_prepare"]


@hookimpl
def edit_describe() -> Method:
    """EMMET needs the second moment of the keys of its layer, and the subject of each fact."""
    return Method(
        "emmet",
        "arXiv 2403.14236",
        EmmetOptions,
        prepares_on="text",
        needs_subject=True,
        locates_answer=False,
    )


@hookimpl
def edit_prepare(
    lm: Lm, options: EmmetOptions, corpus: Corpus | None, checkpoint: Checkpoint
) -> Prepared:
    """The Cholesky factor of C = E[k k^T] at the edited layer."""
    return factors_of(lm, "emmet", options, corpus, checkpoint)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: EmmetOptions) -> Location:
    """The MLP output matrix of the layer; the keys stand at the subject's last token."""
    return find_location(lm, request, options, "emmet")


@hookimpl
def edit_compute_joint(
    lm: Lm,
    requests: Sequence[Request],
    options: EmmetOptions,
    prepared: Prepared,
    carried: Sequence[Mapping[str, Tensor]],
) -> Update:
    """W' = W + R (K^T C^-1 K)^-1 K^T C^-1, so that W' K = W K + R holds exactly."""
    if not options.kappa:
        _check_early(lm, requests, options, carried)
    metric_of = damped_metric(prepared, options.kappa)
    check = None if options.kappa else check_independent
    known = find_known(prepared, "cholesky")
    return joint_update(lm, requests, options, metric_of, carried, known=known, check=check)


def _check_early(
    lm: Lm,
    requests: Sequence[Request],
    options: EmmetOptions,
    carried: Sequence[Mapping[str, Tensor]],
) -> None:
    """Refuse facts without an exact solution before their targets are searched.

    Two prompts that are the same up to the subject's last token have the same key.
    """
    B = memory_of(carried, [options.block]) if options.remember else None
    count, size = len(requests) + (0 if B is None else B.shape[1]), lm.mlp_width(options.block)
    if count > size and lm.experts(options.block) is None:
        raise too_many(count, size)
    known: dict[tuple[int, ...], Request] = {}
    for request in requests:
        ids, index = lm.subject_last(request.prompt, request.subject)
        other = known.setdefault(tuple(ids[: index + 1]), request)
        if other is not request:
            raise equal_keys(name_of_fact(other), name_of_fact(request))
