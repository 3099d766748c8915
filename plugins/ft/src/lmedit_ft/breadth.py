"""Breadth-first training (Yang et al. 2026, arXiv 2509.22072): epochs over all facts, in batches.

The changes are not written into the weights. The blocks below the lowest changed block run once
for each fact.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmedit.replay import enter, resume
from lmedit.replay.batches import BATCH_TOKENS, by_length
from lmedit.storage.steps import tell_step
from lmedit.trace import changed
from lmedit.values.adam import Adam
from lmedit_ft.items import losses_of, places_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm, Site
    from lmedit.replay import Entering
    from lmedit_ft.items import Item
    from lmedit_ft.options import BreadthOptions

    Changes = Mapping[Site, Callable[[Tensor], Tensor]]
    """For each site what its change adds to the output, as a function of the input."""


def shuffle(items: Sequence[Item], seed: int, epoch: int) -> list[int]:
    """An order of *items* that depends on the seed, the epoch and the facts, not on their places.

    Equal facts keep their order.
    """

    def draw(number: int) -> str:
        return sha256(f"{seed}|{epoch}|{items[number].name}".encode()).hexdigest()

    return sorted(range(len(items)), key=draw)


class Losses:
    """The mean loss of a batch of facts as a function of the changes."""

    def __init__(self, lm: Lm, items: Sequence[Item], first: int, changes: Changes) -> None:
        """*first* is the lowest block with a change."""
        self.lm, self.items, self.first, self.changes = lm, items, first, changes
        self.kept: dict[int, Entering] = {}
        if first:
            for group in by_length([len(item.ids) for item in items], BATCH_TOKENS):
                states = enter(lm, [items[number].ids for number in group], first)
                self.kept.update(zip(group, states, strict=True))

    def __call__(self, batch: Sequence[int]) -> Tensor:
        """The losses (n,) in nats of the items *batch*; each is a mean over its tokens."""
        items = [self.items[number] for number in batch]
        rows = [item.ids for item in items]
        kept = resume(self.lm, rows, self.first, [self.kept[n] for n in batch if self.first])
        row, at, tokens = places_of(items, self.lm.device)
        with ExitStack() as stack:
            for site, change in self.changes.items():
                stack.enter_context(changed(self.lm.module_of(site), partial(_add, change)))
            logits = kept.logits_at(row, at)
        return losses_of(items, logits.to(self.lm.working_dtype), tokens)


def _add(change: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> Tensor:
    return out + change(x).to(out)


def train_breadth_first(
    losses: Losses, parameters: Sequence[Tensor], options: BreadthOptions
) -> dict[str, Any]:
    """Train *parameters* with Adam; return notes.

    A batch with a small loss is skipped. Training ends after an epoch with a small mean loss.
    """
    adam = Adam(parameters, options.learning_rate)
    steps, means = 0, []
    count = len(losses.items)
    for epoch in tqdm(range(options.epochs), desc="epochs", disable=None, leave=False):
        order, seen = shuffle(losses.items, options.seed, epoch), []
        for start in range(0, count, options.batch):
            batch = order[start : start + options.batch]
            each = losses(batch)
            seen += each.tolist()
            loss = each.mean()
            if loss.item() < options.stop_loss:
                continue
            adam.step(parameters, torch.autograd.grad(loss, list(parameters)))
            steps += 1
        means.append(sum(seen) / count)
        tell_step("fine-tuning, epoch", epoch + 1, options.epochs, means[-1])
        if means[-1] < options.stop_loss:
            break
    return {"epochs": len(means), "steps": steps, "loss_first": means[0], "loss_last": means[-1]}
