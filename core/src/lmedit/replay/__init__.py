"""Run a model from one layer and one position on, the rest kept (docs/explanation/design.md).

A change at block `layer` and position `start` reaches only later positions and higher blocks. So
`keep` runs the rest once: for the tokens before `start` it keeps keys and values of all blocks,
for the others what enters block `layer`. `Kept.logits` then runs blocks >= `layer` on the
positions >= `start`, as often as one likes, with gradients or without.

The model's own forward does all of it, so positions (learned, rotary, ALiBi), masks, sliding
windows, grouped queries and parallel residuals are right by construction. Rows are aligned at
`start`: moved left of it what comes before, padded on the right after it.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from lmedit.replay.kv_cache import read_only
from lmedit.trace import captured, changed, first, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lmedit.models import Lm


@dataclass(frozen=True)
class Kept:
    """Rows of text, run up to a layer and a position; B rows, P tokens before, S from `start` on.

    Positions in `logits` count from `start`.
    """

    lm: Lm
    layer: int
    inputs: dict[str, Any]
    shape: tuple[int, int]
    """(B, S)"""
    entering: tuple[Any, ...] | Tensor | None
    """What block layer - 1 gave out; None where every block is run."""

    def logits(self, at: Sequence[int]) -> Tensor:
        """Next-token logits (B, len(at), V) at the positions *at*, running blocks >= layer."""
        keep = torch.tensor(at, device=self.lm.device)
        with self.lower_blocks_skipped():
            logits: Tensor = self.lm.model(**self.inputs, logits_to_keep=keep).logits
        return logits

    def entered_by(self, change: Callable[[Tensor], Tensor]) -> Kept:
        """The same with ``change(hidden)`` (B, S, H) entering the block in place of hidden."""
        if self.entering is None:
            raise ValueError("nothing enters block 0 that could be changed")
        if isinstance(self.entering, tuple):
            return replace(self, entering=(change(self.entering[0]), *self.entering[1:]))
        return replace(self, entering=change(self.entering))

    def repeated(self, count: int) -> Kept:
        """The rows of a replay from block 0, *count* times one after the other."""
        if self.layer:
            raise ValueError(f"rows run from block 0 can be repeated, not from {self.layer}")
        inputs = {
            name: torch.cat([value] * count) if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }
        return Kept(self.lm, 0, inputs, (count * self.shape[0], self.shape[1]), None)

    def gathered(self, rows: Tensor, positions: Tensor, *, whole_mlp: bool = True) -> Tensor:
        """Next-token logits (n, V) at the places (row, position), (n,) each.

        The head is applied there alone, whatever the rows' lengths; so is the last block's MLP,
        where nobody changes what that takes in or gives out and so needs its *whole_mlp*.
        """
        head = self.lm.model.get_output_embeddings()
        # A place that is read twice is run once, and its gradient comes from there.
        each, number = torch.unique(torch.stack([rows, positions]), dim=1, return_inverse=True)
        places = tuple(each)

        def at_places(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
            return forward(hidden[places][None])

        def of_places(forward: Callable[..., Tensor], *streams: Tensor) -> Tensor:
            found = forward(*(stream[places][None] for stream in streams))
            return torch.zeros_like(streams[0]).index_put(places, found[0])

        with ExitStack() as lean:
            lean.enter_context(self.lower_blocks_skipped())
            lean.enter_context(wrapped(head, at_places))
            if not whole_mlp and self.layer < self.lm.n_layers:
                last = self.lm.mlp_module(self.lm.n_layers - 1)
                lean.enter_context(wrapped(last, of_places) if last else nullcontext())
            logits: Tensor = self.lm.model(**self.inputs).logits
        return logits[0, number]

    @contextmanager
    def lower_blocks_skipped(self) -> Iterator[None]:
        """Blocks below `layer` give out what was kept, without computing."""
        with ExitStack() as skipping:
            for layer in range(self.layer):
                skip = wrapped(self.lm.block(layer), lambda *_, **__: self.entering)
                skipping.enter_context(skip)
            yield


class Prefixed:
    """Rows of one length that were run once with a cache, to run again from any position on."""

    def __init__(
        self, lm: Lm, rows: Sequence[Sequence[int]], cache: DynamicCache, of: slice = slice(None)
    ) -> None:
        """*cache* holds the keys and values of the whole *rows*, at its rows *of*."""
        self.lm, self.ids = lm, lm.batch(rows).ids
        self.layers = [(keys[of], values[of]) for keys, values, _ in cache]

    def after(self, start: int) -> Kept:
        """The rows from position *start* on, from block 0; what is before is kept."""
        ids = self.ids[:, start:]
        cache = None
        if start:
            cache = read_only([(k[:, :, :start], v[:, :, :start]) for k, v in self.layers])
        positions = torch.arange(start, self.ids.shape[1], device=ids.device).expand_as(ids)
        inputs = _inputs(self.lm, ids, torch.ones_like(self.ids), positions, cache)
        return Kept(self.lm, 0, inputs, (ids.shape[0], ids.shape[1]), None)


@dataclass(frozen=True)
class Entering:
    """What enters a block for one row of T tokens: hidden (T, H), and a tuple's other parts."""

    hidden: Tensor
    others: tuple[Any, ...] | None


@torch.no_grad()
def enter(
    lm: Lm, rows: Sequence[Sequence[int]], layer: int, start: Kept | None = None
) -> list[Entering]:
    """Run *rows* of ids up to block *layer* (the number of blocks: up to the last norm).

    *start* are the same rows ready to run from a lower block on, so that less is run.
    """
    if layer == 0:
        return [Entering(torch.empty(len(row), 0), None) for row in rows]
    start = start or resume(lm, rows, 0, [])
    with captured(lm.block(layer - 1), stop=True) as box, start.lower_blocks_skipped():
        lm.model(**start.inputs)
    others = box.whole[1:] if isinstance(box.whole, tuple) else None
    return [
        Entering(hidden[: len(row)].clone(), others)
        for row, hidden in zip(rows, box.output, strict=True)
    ]


def resume(lm: Lm, rows: Sequence[Sequence[int]], layer: int, entering: Sequence[Entering]) -> Kept:
    """Rows that `enter` ran, ready to be run from block *layer* on, in any company."""
    batch = lm.batch(rows)
    shape = batch.ids.shape[0], batch.ids.shape[1]
    whole: tuple[Any, ...] | Tensor | None = None
    if layer:
        first = entering[0]
        hidden = first.hidden.new_zeros(*shape, first.hidden.shape[-1])
        for i, each in enumerate(entering):
            hidden[i, : len(each.hidden)] = each.hidden
        whole = hidden if first.others is None else (hidden, *first.others)
    positions = torch.arange(shape[1], device=lm.device).expand(shape)
    inputs = _inputs(lm, batch.ids, torch.ones_like(batch.ids), positions)
    return Kept(lm, layer, inputs, shape, whole)


@torch.no_grad()
def keep(lm: Lm, rows: Sequence[Sequence[int]], starts: Sequence[int], layer: int) -> Kept:
    """Run *rows* of ids once, so that they can be run again from *layer* and *starts* on.

    ``starts[i]`` is the index in row i from which on something may change, at least 0 and less
    than the row's length.
    """
    before = [list(row[:start]) for row, start in zip(rows, starts, strict=True)]
    after = lm.batch([row[start:] for row, start in zip(rows, starts, strict=True)])
    lengths = torch.tensor(starts, device=lm.device)
    cache, mask = _prefixes(lm, before)
    positions = lengths[:, None] + torch.arange(after.ids.shape[1], device=lm.device)
    whole_mask = torch.cat([mask, torch.ones_like(after.ids)], dim=1)
    inputs = _inputs(lm, after.ids, whole_mask, positions, cache)
    shape = after.ids.shape[0], after.ids.shape[1]
    if layer == 0:
        return Kept(lm, layer, inputs, shape, None)
    with captured(lm.block(layer - 1), stop=True) as box:
        lm.model(**inputs)
    return Kept(lm, layer, inputs, shape, box.whole)


@torch.no_grad()
def adds_straight(lm: Lm, layer: int, row: Sequence[int]) -> bool:
    """Whether what is added to the MLP's output in *layer* is all that its block gives out more.

    So it is where the MLP is the last thing in a block, or stands beside the attention, and no norm
    or factor follows; then the block itself need not be run again. Tried out on *row* with noise
    as large as the block's own output, at the row's first token.
    """
    outputs = []
    noise = torch.zeros(())

    def add(_: Tensor, out: Tensor) -> Tensor:
        rows = out.reshape(-1, out.shape[-1])
        return torch.cat([rows[:1] + noise.to(out), rows[1:]]).reshape(out.shape)

    for _ in range(2):
        with (
            changed(lm.mlp_out_module(layer), add),
            captured(lm.block(layer), stop=True) as box,
        ):
            lm.logits(lm.batch([row]))
        outputs.append(first(box.whole)[0].clone())
        size = outputs[0].shape[-1]
        random = torch.randn(size, generator=torch.Generator().manual_seed(0))
        noise = random.to(outputs[0]) * outputs[0].abs().max()
    more = outputs[1] - outputs[0]
    more[0] -= noise
    rounding = 8 * torch.finfo(more.dtype).eps
    return bool(more.abs().max() <= rounding * noise.abs().max())


def _prefixes(lm: Lm, rows: Sequence[list[int]]) -> tuple[DynamicCache | None, Tensor]:
    """Keys and values of *rows*, read-only, moved to end at column P, and their mask (B, P).

    They are run padded on the right, where every token has one to look at, and moved afterwards:
    sliding windows count columns.
    """
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows], device=lm.device)
    column = torch.arange(width, device=lm.device) - (width - lengths)[:, None]  # (B, P)
    if not width:
        return None, column
    batch = lm.batch([row or [0] for row in rows])
    cache = DynamicCache()
    lm.model.base_model(
        input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    take = column.clamp(min=0)[:, None, :, None]

    def moved(states: Tensor) -> Tensor:
        return states.gather(2, take.expand(-1, states.shape[1], -1, states.shape[3]))

    kept = read_only([(moved(keys), moved(values)) for keys, values, _ in cache])
    return kept, (column >= 0).long()


def _inputs(
    lm: Lm, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None
) -> dict[str, Any]:
    """The model's arguments for *ids* (B, S) at *positions* behind what is in the *cache*."""
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "use_cache": cache is not None,
        "past_key_values": cache,
        **_positions(lm, positions),
    }


def _positions(lm: Lm, positions: Tensor) -> dict[str, Tensor]:
    """The argument for *positions*, for models that take one; ALiBi counts the mask instead."""
    takes = "position_ids" in inspect.signature(lm.model.forward).parameters
    return {"position_ids": positions} if takes else {}
