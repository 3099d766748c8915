"""MEND (Mitchell et al. 2022), an editor network on gradient factors: the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit import Method, Update, hookimpl
from lmedit.hyper import build_untrained, compute_edit, edit_locate, prepare_editor, works
from lmedit_mend.network import MendNetwork
from lmedit_mend.options import MendOptions
from lmedit_mend.released import read_released

if TYPE_CHECKING:
    from lmedit import Checkpoint, Lm, Location, Prepared, Request, Work
    from lmedit.types import TrainingCases


__all__ = ["edit_compute", "edit_describe", "edit_locate", "edit_plan", "edit_prepare"]


@hookimpl
def edit_describe() -> Method:
    """MEND is trained once per model, on cases. It does not use the subject's place."""
    return Method(
        "mend", "arXiv 2110.11309", MendOptions, prepares_on="cases", locates_answer=False
    )


@hookimpl
def edit_plan(lm: Lm, options: MendOptions, requests: int) -> dict[str, Work]:
    """The work of the training and of an edit."""
    return works(lm, options, requests, lambda: network_of(lm, options))


@hookimpl
def edit_prepare(
    lm: Lm, options: MendOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """Train the editor network, or take over a released one."""
    network = network_of(lm, options)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in network.named_parameters() if name != "alpha"]},
        {"params": [network.alpha], "lr": options.edit_rate_rate},
    ]
    return prepare_editor(lm, network, options, corpus, checkpoint, read_released, groups)


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: MendOptions, prepared: Prepared
) -> Update:
    """W' = W - alpha sum_n delta~_n x~_n^T in every located matrix."""
    return compute_edit(lm, request, location.sites, options, network_of(lm, options), prepared)


def network_of(lm: Lm, options: MendOptions) -> MendNetwork:
    """An untrained network for the matrices of the options; its weights depend on the seed."""
    return build_untrained(lm, options, lambda s, shapes: MendNetwork(s, shapes, options))
