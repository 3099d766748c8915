"""The preparation of a hypernetwork editor, and an edit with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lmedit.hookspecs import hookimpl
from lmedit.hyper.examples import examples_from, row_of
from lmedit.hyper.frozen import edit_factors
from lmedit.hyper.network import EditBatch, Hypernetwork
from lmedit.hyper.training import train
from lmedit.metrics.contamination import TRAINED_ON
from lmedit.types import Location, LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lmedit.hyper.options import HyperOptions
    from lmedit.models import Lm
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import Case, Prepared, Request, Site

Network = TypeVar("Network", bound=Hypernetwork)


@hookimpl
def edit_locate(lm: Lm, options: HyperOptions) -> Location:
    """The MLP matrices of the blocks that the options name; the hook of MEND and KE."""
    return Location(options.sites(lm), {"layers": list(options.blocks)})


def prepare_editor(
    lm: Lm,
    network: Network,
    options: HyperOptions,
    corpus: Iterable[Case] | None,
    checkpoint: Checkpoint,
    take_over: Callable[[str, Network], Prepared],
    groups: Sequence[dict[str, Any]] | None = None,
) -> Prepared:
    """Train *network* on *corpus*, or take over the released editor that the options name.

    *groups* are Adam's parameter groups; by default one group of all parameters.
    """
    if options.checkpoint is not None:
        return take_over(options.checkpoint, network)
    examples = examples_from(lm, corpus, options.limit, options.seed)
    return train(lm, network, examples, options, checkpoint, groups)


def build_untrained(
    lm: Lm,
    options: HyperOptions,
    build: Callable[[Sequence[Site], Sequence[tuple[int, int]]], Network],
) -> Network:
    """``build(sites, shapes)``, drawn with the options' seed; the shapes are (d_out, d_in)."""
    sites = options.sites(lm)
    shapes = [(lm.weight(site).shape[0], lm.weight(site).shape[1]) for site in sites]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return build(sites, shapes)


def compute_edit(
    lm: Lm,
    request: Request,
    sites: Sequence[Site],
    options: HyperOptions,
    network: Hypernetwork,
    prepared: Prepared,
) -> Update:
    """The update of *sites* for *request* that *network* gives with the weights of *prepared*."""
    weights = {
        name: tensor.to(lm.device, torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in prepared.tensors.items()
        if name != TRAINED_ON
    }
    network.load_state_dict(weights, assign=True)
    row = row_of(lm, request.text, request.target_new)
    factors = edit_factors(lm, sites, [row], options.blocks[0])
    batch = lm.batch([[*row[0], *row[1]]])
    with torch.no_grad():
        changes = network(EditBatch(factors, batch.ids, batch.lengths))
    deltas = {
        site: LowRank(change.left[0].clone(), change.right[0].clone())
        for site, change in changes.items()
    }
    norms = {site.name: float(factors[site].dense().norm()) for site in sites}
    return Update(deltas, {"gradient_norms": norms})
