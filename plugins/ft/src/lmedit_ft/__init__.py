"""FT: fine-tuning of one MLP matrix, the ROME paper's baseline, as an lmedit method."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lmedit import Dense, Location, Method, Update, hookimpl
from lmedit.layers import by_sites
from lmedit.memory import in_parts
from lmedit.replay import keep
from lmedit.replay.batches import BATCH_TOKENS, by_length
from lmedit.replay.products import products
from lmedit.storage.steps import tell_step
from lmedit.trace import changed
from lmedit.values.adam import Adam
from lmedit_ft.equations import changed_output, within
from lmedit_ft.items import item_of, losses_of, places_of
from lmedit_ft.options import FtLOptions, FtOptions
from lmedit_ft.plan import at_once, works

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request, Site, Work
    from lmedit.replay import Kept
    from lmedit_ft.items import Item

PAPER = "arXiv 2012.00363"


@hookimpl
def edit_describe() -> Method:
    """FT needs no preparation and no subject."""
    return Method("ft", PAPER, FtOptions, locates_answer=False)


@hookimpl
def edit_plan(lm: Lm, options: FtOptions, requests: int) -> dict[str, Work]:
    """The work of an edit."""
    return works(lm, options, requests)


@hookimpl
def edit_locate(lm: Lm, request: Request, options: FtOptions) -> Location:
    """The MLP output matrix of the layer (of one expert, if it has experts), and its bias."""
    layer, site = options.block, options.site(lm, request)
    bias = lm.mlp_out_bias(layer) if options.bias else None
    sites = (site,) if bias is None else (site, bias)
    origin = options.layer_origin(lm, "ft-l" if isinstance(options, FtLOptions) else "ft")
    evidence = {"layer": layer, "layer from": origin, **options.routing(lm, request)}
    return Location(sites, evidence)


@hookimpl
def edit_compute(lm: Lm, request: Request, location: Location, options: FtOptions) -> Update:
    """Train the located matrix (and bias) with Adam until the new answer's loss is small."""
    return _train_requests(lm, location, options, [request])[0]


@hookimpl
def edit_compute_many(
    lm: Lm, requests: Sequence[Request], locations: Sequence[Location], options: FtOptions
) -> list[Update]:
    """The same for several requests at once. Their Adam states share at most a gigabyte."""
    size = at_once(lm, options.block)
    found: dict[int, Update] = {}
    for numbers, location in by_sites(locations):
        chosen = [requests[i] for i in numbers]
        parts = in_parts(partial(_train_requests, lm, location, options), chosen, size)
        found |= zip(numbers, (update for part in parts for update in part), strict=True)
    return [found[i] for i in range(len(requests))]


@dataclass
class _Training:
    """One request's change: a Delta per site, first zero, and the loss before each step."""

    Deltas: list[Tensor]
    losses: list[float] = field(default_factory=list)


def _train_requests(
    lm: Lm, location: Location, options: FtOptions, requests: Sequence[Request]
) -> list[Update]:
    """Train the Deltas of each request; the requests share the forward passes."""
    changes = [
        _Training(
            [
                torch.zeros(
                    lm.weight(site).shape, dtype=lm.working_dtype, device=lm.device_of(site)
                ).requires_grad_()
                for site in location.sites
            ]
        )
        for _ in requests
    ]
    with products(lm, options.compute):
        _train(_Losses(lm, requests, location.sites[0], options), changes, options)
    updates = []
    for request, change in zip(requests, changes, strict=True):
        steps = sum(loss >= options.stop_loss for loss in change.losses)
        first, last = change.losses[0], change.losses[-1]
        notes: dict[str, Any] = {"steps": steps, "loss_first": first, "loss_last": last}
        if _reads_at_once(lm, request, options):
            notes["remedy"] = AT_ONCE
        deltas = [Dense(Delta.detach()) for Delta in change.Deltas]
        updates.append(Update(dict(zip(location.sites, deltas, strict=True)), notes))
    return updates


AT_ONCE = "-o preset ft-m (it trains each token of the answer behind those before it)"
"""What to try if the released objective fails on an answer of several tokens."""


def _reads_at_once(lm: Lm, request: Request, options: FtOptions) -> bool:
    """Whether several tokens of the answer are trained at one place, as in the released code."""
    several = len(lm.with_target(request.text, request.target_new)[1]) > 1
    return several and options.objective == "prompt_last"


def _train(losses_of: _Losses, changes: Sequence[_Training], options: FtOptions) -> None:
    """Train the Deltas in place; a change with a small loss is done and does not run again."""
    everything = [Delta for change in changes for Delta in change.Deltas]
    optimiser = Adam(everything, options.learning_rate, fused=True)
    going = list(range(len(changes)))
    for step in range(options.steps):
        losses = losses_of(changes, going)
        values = losses.tolist()
        tell_step("fine-tuning", step + 1, options.steps, sum(values) / len(values))
        for i, loss in zip(going, values, strict=True):
            changes[i].losses.append(loss)
        left = [number for number, loss in enumerate(values) if loss >= options.stop_loss]
        if not left:
            break
        going = [going[number] for number in left]
        Deltas = [Delta for i in going for Delta in changes[i].Deltas]
        optimiser.step(Deltas, torch.autograd.grad(losses[left].sum(), Deltas))
        if options.epsilon is not None:
            for Delta in Deltas:
                Delta.data = within(Delta.data, options.epsilon)


class _Losses:
    """The new answers' losses as a function of the changes; the blocks below run only once.

    The objective tells where target tokens are read: all at the prompt's last token, or each
    behind those before it.
    """

    def __init__(self, lm: Lm, requests: Sequence[Request], site: Site, options: FtOptions) -> None:
        forced = options.objective == "target_new"
        items = [item_of(lm, request, forced=forced) for request in requests]
        self.module, self.dtype = lm.module_of(site), lm.working_dtype
        self.groups = []
        for numbers in by_length([len(item.ids) for item in items], BATCH_TOKENS):
            some = [items[i] for i in numbers]
            kept = keep(lm, [item.ids for item in some], [0] * len(some), options.block)
            self.groups.append(_Group(numbers, some, kept))

    def __call__(self, changes: Sequence[_Training], going: Sequence[int]) -> Tensor:
        """The losses (n,) in nats of the requests *going*.

        The rows of other requests run no more, so a later call cannot ask for them.
        """
        self.groups = [left for group in self.groups if (left := group.take(going))]
        found: dict[int, Tensor] = {}
        for group in self.groups:
            found |= zip(group.numbers, self._losses_of(group, changes), strict=True)
        return torch.stack([found[i] for i in going])

    def _losses_of(self, group: _Group, changes: Sequence[_Training]) -> Tensor:
        def add(x: Tensor, out: Tensor) -> Tensor:
            xs, outs = (t.reshape(*group.kept.shape, -1) for t in (x, out))
            each = [
                changed_output(outs[row], xs[row], *changes[i].Deltas)
                for row, i in enumerate(group.numbers)
            ]
            return torch.stack(each).reshape(out.shape)

        with changed(self.module, add):
            logits = group.kept.logits_at(group.rows, group.at)  # (n, V)
        return losses_of(group.items, logits.to(self.dtype), group.tokens)


class _Group:
    """Requests that run together, as rows of about one length."""

    def __init__(self, numbers: list[int], items: list[Item], kept: Kept) -> None:
        self.numbers, self.items, self.kept = numbers, items, kept
        self.rows, self.at, self.tokens = places_of(items, kept.lm.device)

    def take(self, going: Sequence[int]) -> _Group | None:
        """The rows of the requests *going*; None if there are none."""
        stay = [row for row, i in enumerate(self.numbers) if i in going]
        if len(stay) == len(self.numbers):
            return self
        if not stay:
            return None
        items = [self.items[row] for row in stay]
        return _Group([self.numbers[row] for row in stay], items, self.kept.take(stay))
