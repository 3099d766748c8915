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
from lmedit_ft.equations import changed_output, negative_log_likelihood, within
from lmedit_ft.options import FtLOptions, FtOptions
from lmedit_ft.plan import at_once, works

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request, Site, Work
    from lmedit.replay import Kept

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
        pairs = [lm.with_target(request.text, request.target_new) for request in requests]
        forced = options.objective == "target_new"
        rows = [prompt + target[:-1] if forced else prompt for prompt, target in pairs]
        self.module, self.dtype = lm.module_of(site), lm.working_dtype
        self.targets = [torch.tensor(target, device=lm.device) for _, target in pairs]
        self.at = [
            torch.tensor(
                [len(prompt) - 1 + (place if forced else 0) for place in range(len(target))],
                device=lm.device,
            )
            for prompt, target in pairs
        ]
        self.groups = [
            _Group(group, keep(lm, [rows[i] for i in group], [0] * len(group), options.block))
            for group in by_length([len(row) for row in rows], BATCH_TOKENS)
        ]

    def __call__(self, changes: Sequence[_Training], going: Sequence[int]) -> Tensor:
        """The losses (n,) in nats of the requests *going*.

        The rows of other requests run no more, so a later call cannot ask for them.
        """
        self.groups = [left for group in self.groups if (left := group.take(going))]
        found: dict[int, Tensor] = {}
        for group in self.groups:
            found |= zip(group.requests, self._losses_of(group, changes), strict=True)
        return torch.stack([found[i] for i in going])

    def _losses_of(self, group: _Group, changes: Sequence[_Training]) -> list[Tensor]:
        def add(x: Tensor, out: Tensor) -> Tensor:
            xs, outs = (t.reshape(*group.kept.shape, -1) for t in (x, out))
            each = [
                changed_output(outs[row], xs[row], *changes[i].Deltas)
                for row, i in enumerate(group.requests)
            ]
            return torch.stack(each).reshape(out.shape)

        at = [self.at[i] for i in group.requests]
        lengths = torch.tensor([len(each) for each in at], device=at[0].device)
        rows = torch.arange(len(at), device=lengths.device).repeat_interleave(lengths)
        tokens = torch.cat([self.targets[i] for i in group.requests])
        with changed(self.module, add):
            logits = group.kept.logits_at(rows, torch.cat(at))  # (n, V)
        log_p = logits.to(self.dtype).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        return [negative_log_likelihood(t) for t in torch.split(log_p, lengths.tolist())]


@dataclass(frozen=True)
class _Group:
    """Rows of about one length, one for each of *requests*."""

    requests: list[int]
    kept: Kept

    def take(self, going: Sequence[int]) -> _Group | None:
        """The rows of the requests *going*; None if there are none."""
        stay = [row for row, i in enumerate(self.requests) if i in going]
        if len(stay) == len(self.requests):
            return self
        return _Group([self.requests[row] for row in stay], self.kept.take(stay)) if stay else None
