"""KE (De Cao et al. 2021, in Mitchell's form), a hypernetwork that reads the edit, as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit import Location, Method, Prepared, Update, hookimpl
from lmedit.hyper import edited, examples_from, train
from lmedit_ke.network import KeNetwork
from lmedit_ke.options import KeOptions
from lmedit_ke.published import from_published

if TYPE_CHECKING:
    from lmedit import Checkpoint, Lm, Request
    from lmedit.types import TrainingCases


@hookimpl
def edit_describe() -> Method:
    """KE is trained once for a model, on cases."""
    return Method("ke", "arXiv 2104.08164", KeOptions, prepares_on="cases")


@hookimpl
def edit_prepare(
    lm: Lm, options: KeOptions, corpus: TrainingCases | None, checkpoint: Checkpoint
) -> Prepared:
    """Train the hypernetwork, at scale 1, or take over a published one."""
    trained = options.model_copy(update={"scale": 1.0})
    network = network_of(lm, trained)
    if options.checkpoint is not None:
        return from_published(options.checkpoint, network)
    examples = examples_from(lm, corpus, options.limit, options.seed)
    return train(lm, network, examples, trained, checkpoint)


@hookimpl
def edit_locate(lm: Lm, options: KeOptions) -> Location:
    """The MLP matrices of the last blocks."""
    return Location(options.sites(lm), {"layers": list(options.layers or ())})


@hookimpl
def edit_compute(
    lm: Lm, request: Request, location: Location, options: KeOptions, prepared: Prepared
) -> Update:
    """W' = W + scale * sigma(s) (dL/dW * A + B) in every located matrix."""
    return edited(lm, request, location.sites, options, network_of(lm, options), prepared)


def network_of(lm: Lm, options: KeOptions) -> KeNetwork:
    """An untrained network for the matrices of the options; its weights depend on the seed."""
    sites = options.sites(lm)
    shapes = [(lm.weight(site).shape[0], lm.weight(site).shape[1]) for site in sites]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return KeNetwork(sites, shapes, lm.model.get_input_embeddings().weight, options)
