"""Run a model again from one layer and one position on; keep the rest (docs/explanation/design.md).

A change at block `layer` and position `start` reaches only later positions and higher blocks. So
`keep` runs the rest once. It stores keys and values of all blocks for the tokens before `start`,
and the input of block `layer` for the other tokens. `Kept.logits` then runs blocks >= `layer` on
positions >= `start`, any number of times, with or without gradients.

The model's own forward does all of this. So positions (learned, rotary, ALiBi), masks, sliding
windows, grouped queries and parallel residuals are right by construction. Rows are aligned at
`start`: the part before it moves to the right, and the part after it is padded on the right.

Whether this holds for a model is tried once (`ways`). Where it does not, more of a pass runs: all
tokens, with `Kept.start` as the place where a change begins, or all blocks.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lmedit.replay.ways import ways_of
from lmedit.trace import captured, changed, first, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import DynamicCache

    from lmedit.models import Lm


@dataclass(frozen=True)
class Kept:
    """Rows of text, run up to a layer and a position; B rows, S tokens that run again.

    Positions in `logits` and `logits_at` count from where a change begins. That is `start` among
    the tokens that run: 0, or later if the tokens before it run too.
    """

    lm: Lm
    layer: int
    inputs: dict[str, Any]
    shape: tuple[int, int]
    """(B, S)"""
    entering: tuple[Any, ...] | Tensor | None
    """The output of block layer - 1; None if every block is run."""
    start: Tensor
    """(B,)"""

    def logits(self, at: Sequence[int]) -> Tensor:
        """Next-token logits (B, len(at), V) at the positions *at*; runs the blocks >= layer."""
        keep = torch.tensor(at, device=self.lm.device)
        if bool(self.start.any()) or not ways_of(self.lm).head:
            rows = torch.arange(self.shape[0], device=self.lm.device)
            every = self.logits_at(rows.repeat_interleave(len(at)), keep.repeat(self.shape[0]))
            return every.reshape(self.shape[0], len(at), -1)
        with self.lower_blocks_skipped():
            logits: Tensor = self.lm.model(**self.inputs, logits_to_keep=keep).logits
        return logits

    def change_entering(self, change: Callable[[Tensor], Tensor]) -> Kept:
        """The same replay, with ``change(hidden)`` (B, S, H) as the block's input."""
        if self.entering is None:
            raise ValueError("the replay starts at block 0, which has no kept input to change")
        if isinstance(self.entering, tuple):
            return replace(self, entering=(change(self.entering[0]), *self.entering[1:]))
        return replace(self, entering=change(self.entering))

    def repeat(self, count: int) -> Kept:
        """The rows of a replay from block 0, repeated *count* times."""
        if self.layer:
            raise ValueError(f"only a replay from block 0 can be repeated, not from {self.layer}")
        inputs = {
            name: torch.cat([value] * count) if isinstance(value, torch.Tensor) else value
            for name, value in self.inputs.items()
        }
        shape = count * self.shape[0], self.shape[1]
        return Kept(self.lm, 0, inputs, shape, None, self.start.repeat(count))

    def take(self, rows: Sequence[int]) -> Kept:
        """The same replay of some rows, in the order of their numbers *rows*."""
        at = torch.tensor(list(rows), device=self.lm.device)
        inputs = {name: _take(value, at, self.shape[0]) for name, value in self.inputs.items()}
        entering = _take(self.entering, at, self.shape[0])
        return replace(
            self,
            inputs=inputs,
            shape=(len(rows), self.shape[1]),
            entering=entering,
            start=self.start[at],
        )

    def logits_at(self, rows: Tensor, positions: Tensor, *, whole_mlp: bool = True) -> Tensor:
        """Next-token logits (n, V) at the places (row, position), (n,) each.

        The head runs only at these places, for rows of any length. So does the MLP of the last
        block, unless *whole_mlp*; set it if somebody changes the input or output of that MLP.
        """
        ways = ways_of(self.lm)
        head = self.lm.model.get_output_embeddings()
        positions = positions + self.start[rows]
        if not ways.head:
            with self.lower_blocks_skipped():
                whole: Tensor = self.lm.model(**self.inputs).logits
            return whole[rows, positions]
        # A place that is read twice is run once; its gradient is right too.
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
            if ways.mlp and not whole_mlp and self.layer < self.lm.n_layers:
                last = self.lm.mlp_module(self.lm.n_layers - 1)
                lean.enter_context(wrapped(last, of_places) if last else nullcontext())
            logits: Tensor = self.lm.model(**self.inputs).logits
        return logits[0, number]

    @contextmanager
    def lower_blocks_skipped(self) -> Iterator[None]:
        """Let the blocks below `layer` return the kept output, without computing."""
        with ExitStack() as skipping:
            for layer in range(self.layer):
                skip = wrapped(self.lm.block(layer), lambda *_, **__: self.entering)
                skipping.enter_context(skip)
            yield


def _take(value: Any, rows: Tensor, count: int) -> Any:
    """The *rows* of an input of *count* rows: a tensor, a tuple, or kept keys and values."""
    if isinstance(value, torch.Tensor):
        return value[rows.to(value.device)] if value.dim() and len(value) == count else value
    if isinstance(value, tuple):
        return tuple(_take(part, rows, count) for part in value)
    from transformers import DynamicCache

    from lmedit.replay.kv_cache import read_only

    if isinstance(value, DynamicCache):
        pairs = [(keys, values) for keys, values, _ in value]
        return read_only([_take(pair, rows, count) for pair in pairs])
    return value


class Prefixed:
    """Rows of one length with a cache of their keys and values, to run again from any position."""

    def __init__(
        self, lm: Lm, rows: Sequence[Sequence[int]], cache: DynamicCache, of: slice = slice(None)
    ) -> None:
        """*cache* holds the keys and values of the whole *rows*, in its rows *of*."""
        self.lm, self.ids = lm, lm.batch(rows).ids
        self.layers = [(keys[of], values[of]) for keys, values, _ in cache]

    def after(self, start: int) -> Kept:
        """The rows from position *start* on, from block 0; the tokens before are in the cache."""
        ids = self.ids[:, start:]
        cache = None
        if start:
            from lmedit.replay.kv_cache import read_only

            cache = read_only([(k[:, :, :start], v[:, :, :start]) for k, v in self.layers])
        positions = torch.arange(start, self.ids.shape[1], device=ids.device).expand_as(ids)
        inputs = _inputs(self.lm, ids, torch.ones_like(self.ids), positions, cache)
        shape = ids.shape[0], ids.shape[1]
        return Kept(self.lm, 0, inputs, shape, None, _zeros(ids))


def _zeros(ids: Tensor) -> Tensor:
    """A change begins at the first token of each row, (B,)."""
    return torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)


@dataclass(frozen=True)
class Entering:
    """The input of a block for one row of T tokens: hidden (T, H), and other parts of a tuple."""

    hidden: Tensor
    others: tuple[Any, ...] | None


@torch.no_grad()
def enter(
    lm: Lm, rows: Sequence[Sequence[int]], layer: int, start: Kept | None = None
) -> list[Entering]:
    """Run *rows* of ids up to block *layer*; the number of blocks means up to the last norm.

    *start* are the same rows, ready to run from a lower block on; then less is run.
    """
    if layer == 0 or not ways_of(lm).lower:
        return [Entering(torch.empty(len(row), 0), None) for row in rows]
    start = start or resume(lm, rows, 0, [])
    with captured(lm.block_below(layer), stop=True) as box, start.lower_blocks_skipped():
        lm.model(**start.inputs)
    others = box.whole[1:] if isinstance(box.whole, tuple) else None
    return [
        Entering(hidden[: len(row)].clone(), others)
        for row, hidden in zip(rows, box.output, strict=True)
    ]


def resume(lm: Lm, rows: Sequence[Sequence[int]], layer: int, entering: Sequence[Entering]) -> Kept:
    """Rows that `enter` has run, ready to run from block *layer* on, in any batch."""
    batch = lm.batch(rows)
    shape = batch.ids.shape[0], batch.ids.shape[1]
    layer = layer if ways_of(lm).lower else 0
    whole: tuple[Any, ...] | Tensor | None = None
    if layer:
        first = entering[0]
        hidden = first.hidden.new_zeros(*shape, first.hidden.shape[-1])
        for i, each in enumerate(entering):
            hidden[i, : len(each.hidden)] = each.hidden
        whole = hidden if first.others is None else (hidden, *first.others)
    positions = torch.arange(shape[1], device=lm.device).expand(shape)
    inputs = _inputs(lm, batch.ids, torch.ones_like(batch.ids), positions)
    return Kept(lm, layer, inputs, shape, whole, _zeros(batch.ids))


@torch.no_grad()
def keep(lm: Lm, rows: Sequence[Sequence[int]], starts: Sequence[int], layer: int) -> Kept:
    """Run *rows* of ids once, so that they can run again from *layer* and *starts* on.

    ``starts[i]`` is the first index in row i at which something may change. It is at least 0 and
    less than the length of the row.
    """
    ways = ways_of(lm)
    layer = layer if ways.lower else 0
    if not ways.cached:
        whole = resume(lm, rows, layer, enter(lm, rows, layer))
        return replace(whole, start=torch.tensor(list(starts), device=lm.device))
    from lmedit.replay.kv_cache import cache_beginnings

    before = [list(row[:start]) for row, start in zip(rows, starts, strict=True)]
    kept = run_on(lm, rows, starts, *cache_beginnings(lm, before))
    if layer == 0:
        return kept
    with captured(lm.block_below(layer), stop=True) as box:
        lm.model(**kept.inputs)
    return replace(kept, layer=layer, entering=box.whole)


def run_on(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    before: Sequence[tuple[Tensor, Tensor]],
    mask: Tensor,
) -> Kept:
    """*rows*, ready to run from *starts* on, all blocks; *before* as `cache_beginnings` returns."""
    from lmedit.replay.kv_cache import read_only

    after = lm.batch([row[start:] for row, start in zip(rows, starts, strict=True)])
    lengths = torch.tensor(starts, device=lm.device)
    positions = lengths[:, None] + torch.arange(after.ids.shape[1], device=lm.device)
    whole_mask = torch.cat([mask, torch.ones_like(after.ids)], dim=1)
    cache = read_only(before) if before else None
    inputs = _inputs(lm, after.ids, whole_mask, positions, cache)
    return Kept(lm, 0, inputs, (after.ids.shape[0], after.ids.shape[1]), None, _zeros(after.ids))


@torch.no_grad()
def adds_straight(lm: Lm, layer: int, row: Sequence[int]) -> bool:
    """Whether a change of the MLP output changes the block's output by exactly the same amount.

    This holds if the MLP comes last in the block, or next to the attention, and no norm or factor
    follows. Then the block need not run again. It is tested on *row*: noise as large as the
    block's output is added at the first token. It never holds where lower blocks always run.
    """
    if not ways_of(lm).lower:
        return False
    outputs = []
    noise = torch.zeros(())

    def add(_: Tensor, out: Tensor) -> Tensor:
        rows = out.reshape(-1, out.shape[-1])
        return torch.cat([rows[:1] + noise.to(out), rows[1:]]).reshape(out.shape)

    for _ in range(2):
        with (
            changed(lm.mlp_value_module(layer), add),
            captured(lm.block(layer), stop=True) as box,
        ):
            lm.logits(lm.batch([row]))
        outputs.append(first(box.whole)[0].clone())
        size = outputs[0].shape[-1]
        if size != lm.hidden_size:  # several streams side by side
            return False
        random = torch.randn(size, generator=torch.Generator().manual_seed(0))
        noise = random.to(outputs[0]) * outputs[0].abs().max()
    more = outputs[1] - outputs[0]
    more[0] -= noise
    rounding = 8 * torch.finfo(more.dtype).eps
    return bool(more.abs().max() <= rounding * noise.abs().max())


def _inputs(
    lm: Lm, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None
) -> dict[str, Any]:
    """The model's arguments for *ids* (B, S) at *positions*, after the tokens in *cache*.

    Only those that it takes: models with ALiBi count the mask and take no positions.
    """
    takes = inspect.signature(lm.model.forward).parameters
    wanted = {
        "input_ids": ids,
        "attention_mask": mask,
        "use_cache": cache is not None,
        "past_key_values": cache,
        "position_ids": positions,
    }
    return {name: value for name, value in wanted.items() if name in takes}
