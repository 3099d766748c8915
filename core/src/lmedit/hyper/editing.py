"""The preparation of a hypernetwork editor, and an edit with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lmedit.hookspecs import hookimpl
from lmedit.hyper.examples import Example, examples_from, row_of
from lmedit.hyper.frozen import FrozenModel, edit_factors
from lmedit.hyper.network import EditBatch, Hypernetwork
from lmedit.hyper.training import train
from lmedit.metrics.contamination import TRAINED_ON
from lmedit.storage.steps import tell_step
from lmedit.types import Dense, Location, LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lmedit.hyper.examples import Row
    from lmedit.hyper.factors import Factors
    from lmedit.hyper.options import HyperOptions, MatrixOptions
    from lmedit.models import Lm
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import Case, Delta, Prepared, Request, Site

Network = TypeVar("Network", bound=Hypernetwork)


@hookimpl
def edit_locate(lm: Lm, options: MatrixOptions) -> Location:
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
    load_weights(lm, network, prepared)
    row = row_of(lm, request.text, request.target_new)
    factors = edit_factors(lm, sites, [row], options.blocks[0], hear=_Told(1))
    batch = lm.batch([[*row[0], *row[1]]])
    with torch.no_grad():
        changes = network(EditBatch(factors, batch.ids, batch.lengths))
    deltas = {
        site: LowRank(change.left[0].clone(), change.right[0].clone())
        for site, change in changes.items()
    }
    norms = {site.name: float(factors[site].dense().norm()) for site in sites}
    return Update(deltas, {"gradient_norms": norms})


class _Told:
    """Tells of the gradients that are computed, with the mean loss of their facts."""

    def __init__(self, facts: int) -> None:
        self.done, self.facts = 0, facts

    def __call__(self, losses: Tensor) -> None:
        """Tell of as many facts more as there are *losses* (n,)."""
        self.done += len(losses)
        tell_step("gradients of the answers", self.done, self.facts, float(losses.mean()))


def compute_joint_edit(
    lm: Lm,
    requests: Sequence[Request],
    sites: Sequence[Site],
    options: HyperOptions,
    network: Hypernetwork,
    prepared: Prepared,
) -> Update:
    """The one update for all *requests* that a joint *network* gives; see `compute_edit`."""
    load_weights(lm, network, prepared)
    rows = [row_of(lm, request.text, request.target_new) for request in requests]
    factors = answer_factors(lm, rows, sites, options.blocks[0])
    batch = lm.batch([[*prompt, *target] for prompt, target in rows])
    with torch.no_grad():
        changes = network(EditBatch(factors, batch.ids, batch.lengths))
    deltas = {
        site: smaller_of(LowRank(change.left[0], change.right[0]))
        for site, change in changes.items()
    }
    return Update(deltas, {"facts": len(requests)})


def load_weights(lm: Lm, network: Hypernetwork, prepared: Prepared) -> None:
    """Give *network* the weights of *prepared*, in float32 or in double precision."""
    weights = {
        name: tensor.to(lm.device, torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in prepared.tensors.items()
        if name != TRAINED_ON
    }
    network.load_state_dict(weights, assign=True)


def answer_factors(
    lm: Lm, rows: Sequence[Row], sites: Sequence[Site], first: int
) -> dict[Site, Factors]:
    """The factors of the tokens that predict the answers of *rows*, as one batch of (B, N).

    The rows run in groups, so any number of them fits. *first* is the lowest block of *sites*.
    """
    told = _Told(len({*rows}))  # equal rows run once
    return FrozenModel(lm, sites, first, 0.0, answers=True, hear=told).factors(
        [Example(row, (), ()) for row in rows]
    )


def smaller_of(low: LowRank) -> Delta:
    """*low*, or the same change as a matrix where that has fewer numbers."""
    rows, columns = low.shape
    fits = low.left.shape[1] * (rows + columns) <= rows * columns
    return LowRank(low.left.contiguous(), low.right.contiguous()) if fits else Dense(low.dense())
