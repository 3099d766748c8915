"""MEND (Mitchell et al. 2022), an editor network on gradient factors: options and hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit import Method, Update, hookimpl
from lmedit.hyper import edited, examples_from, located, train, untrained, works
from lmedit_mend.network import MendNetwork
from lmedit_mend.options import MendOptions
from lmedit_mend.published import from_published

if TYPE_CHECKING:
    from lmedit import Checkpoint, Lm, Location, Prepared, Request, Work
    from lmedit.types import TrainingCases


@hookimpl
def edit_describe() -> Method:
    """MEND is trained once for a model, on cases."""
    return Method("mend", "arXiv 2110.11309", MendOptions, prepares_on="cases")


@hookimpl
def edit_plan(lm: Lm, options: MendOptions, requests: int) -> dict[str, Work]:
    """The training, and an edit."""
    return works(lm, options, requests, lambda: network_of(lm, options))


@hookimpl
def edit_prepare(
    lm: Lm, options: MendOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """Train the editor network, or take over a published one."""
    network = network_of(lm, options)
    if options.checkpoint is not None:
        return from_published(options.checkpoint, network)
    examples = examples_from(lm, corpus, options.limit, options.seed)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in network.named_parameters() if name != "alpha"]},
        {"params": [network.alpha], "lr": options.edit_rate_rate},
    ]
    return train(lm, network, examples, options, checkpoint, groups)


@hookimpl
def edit_locate(lm: Lm, options: MendOptions) -> Location:
    """The MLP matrices of the last blocks."""
    return located(lm, options)


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: MendOptions, prepared: Prepared
) -> Update:
    """W' = W - alpha sum_n delta~_n x~_n^T in every located matrix."""
    return edited(lm, request, location.sites, options, network_of(lm, options), prepared)


def network_of(lm: Lm, options: MendOptions) -> MendNetwork:
    """An untrained network for the matrices of the options; its weights depend on the seed."""
    return untrained(lm, options, lambda s, shapes: MendNetwork(s, shapes, options))
