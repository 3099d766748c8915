"""Batched forward passes for several metrics; a row's result is the same in any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from lmedit.errors import RequestError
from lmedit.memory import in_parts, is_out_of_memory
from lmedit.replay.beginnings import run_beginnings, shared_starts
from lmedit.replay.ways import ways_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.beginnings import Beginnings
    from lmedit.replay.unmerged import RowEdits

T = TypeVar("T")
BATCH_TOKENS = 2048
"""Padded tokens in one forward pass. It bounds the memory and changes no score."""
PASS_TOKENS = 64
"""A further pass costs as much time as this many tokens."""
WORTHWHILE = 0.85
"""Beginnings run once if then at most this part of the work is left."""


def by_length(lengths: Sequence[int], budget: int, most: int | None = None) -> list[list[int]]:
    """Indices of rows, the shortest first, in groups of at most *budget* padded tokens.

    A group has at most *most* rows. The groups have the smallest cost: their padded tokens, plus
    `PASS_TOKENS` for each group. A row that is longer than the budget is a group of its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [
        n
        for n in range(1, len(order) + 1)
        if n == len(order) or lengths[order[n]] > lengths[order[n - 1]]
    ]
    best: dict[int, tuple[float, list[list[int]]]] = {0: (0.0, [])}
    for end in ends:  # the cheapest groups of the rows up to end
        width = max(1, lengths[order[end - 1]])
        size = max(1, min(budget // width, most or budget))
        ways = []
        for start, (before, groups) in best.items():
            parts = [order[at : min(at + size, end)] for at in range(start, end, size)]
            cost = before + (end - start) * width + PASS_TOKENS * len(parts)
            ways.append((cost, groups + parts))
        best[end] = min(ways, key=lambda way: way[0])
    return best[len(order)][1]


@torch.no_grad()
def read_rows(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    read: Callable[[int, Tensor], T],
    batch_tokens: int = BATCH_TOKENS,
    places: Sequence[Sequence[int]] | None = None,
    under: RowEdits | None = None,
) -> list[T]:
    """Return ``read(i, logits)`` for each of *rows* of ids, in their order.

    The logits (n, V) are those at the positions ``places[i]``, by default at all positions. The
    head runs only there. *under* gives the edit of each row. If a row begins another row of the
    same edit, it is not run on its own: two targets after one prompt share a pass. If the memory
    is full, a pass is halved.
    """
    ways_of(lm)  # before an edit is in the passes
    answers: dict[int, T] = {}
    places = places or [range(len(row)) for row in rows]
    edits = [0] * len(rows) if under is None else under.of
    whole = [(edit, *row) for edit, row in zip(edits, rows, strict=True)]
    shared = _sharing(whole)
    keys = {m: whole[m] for m in shared}
    most = [min((at for i in some for at in places[i]), default=0) for some in shared.values()]
    starts = _useful_starts(lm, keys, most, under)

    def run(which: Sequence[int]) -> None:
        readers = [(number, m, i) for number, m in enumerate(which) for i in shared[m]]
        at = [(number, place - begun.starts[m]) for number, m, i in readers for place in places[i]]
        logits = begun.logits_at(which, torch.tensor(at, device=lm.device).reshape(-1, 2).T)
        parts = torch.split(logits, [len(places[i]) for _, _, i in readers])
        for (_, _, i), part in zip(readers, parts, strict=True):
            answers[i] = read(i, part)

    for some, most_rows in _portions(keys, batch_tokens if any(starts.values()) else None):
        begun = _begin(lm, keys, starts, some, under)
        lengths = [len(rows[m]) - begun.starts[m] for m in some]
        for group in by_length(lengths, batch_tokens, most_rows):
            for _ in in_parts(run, [some[n] for n in group], len(group)):
                pass
    return [answers[i] for i in range(len(rows))]


def _useful_starts(
    lm: Lm, keys: Mapping[int, Sequence[int]], most: Sequence[int], under: RowEdits | None
) -> dict[int, int]:
    """For each row of *keys* how many first tokens run once for several; 0 if that saves little.

    A key is the number of an edit, then ids. A row that goes on from a beginning runs all blocks,
    because states of lower blocks are kept for whole rows alone.
    """
    if not ways_of(lm).cached or not any(most):
        return dict.fromkeys(keys, 0)
    starts = shared_starts([*keys.values()], [at + 1 for at in most])
    starts = [max(0, start - 1) for start in starts]  # the edit is no token
    some = dict(zip(keys, starts, strict=True))
    once = {keys[m][: start + 1] for m, start in some.items() if start}
    tokens = sum(len(key) - 1 for key in keys.values())
    fewer = tokens - sum(starts) + sum(len(key) - 1 for key in once) + PASS_TOKENS
    blocks = lm.n_layers - (under.edits.first if under else 0)
    if fewer * lm.n_layers > WORTHWHILE * tokens * blocks:
        return dict.fromkeys(keys, 0)
    return some


def _begin(
    lm: Lm,
    keys: Mapping[int, Sequence[int]],
    starts: Mapping[int, int],
    some: Sequence[int],
    under: RowEdits | None,
) -> Beginnings:
    """The beginnings of the rows *some*; if the memory is full, none."""
    try:
        return run_beginnings(lm, keys, starts, some, under)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return run_beginnings(lm, keys, dict.fromkeys(keys, 0), some, under)


def _portions(
    keys: Mapping[int, Sequence[int]], tokens: int | None
) -> Iterator[tuple[list[int], int | None]]:
    """The rows in portions of twice *tokens*, with the rows of a pass; None: no limit.

    A portion keeps its beginnings, and a pass a copy for each row: this bounds the memory.
    """
    part: list[int] = []
    count = longest = 0
    for m, key in keys.items():
        if part and tokens is not None and count + len(key) > 2 * tokens:
            yield part, max(1, tokens // longest)
            part, count, longest = [], 0, 0
        part.append(m)
        count, longest = count + len(key), max(longest, len(key))
    yield part, None if tokens is None else max(1, tokens // longest)


def _sharing(rows: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """The rows to run, each with all rows that it begins with, itself included.

    In sorted order, a beginning comes right before the row that it begins.
    """
    shared: dict[int, list[int]] = {}
    last: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i]), reverse=True):
        if not last or list(rows[last[0]][: len(rows[i])]) != list(rows[i]):
            last = shared[i] = []
        last.append(i)
    return shared


def target_places(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[range]:
    """For rows prompt + target[:-1]: the positions that predict the target's tokens."""
    return [range(len(ids) - 1, len(ids) - 1 + len(target)) for ids, target in rows]


def encode_prompt(lm: Lm, prompt: str, room: int = 0) -> list[int]:
    """Ids of *prompt* without the blanks at its end, which belong to what follows.

    Raises `RequestError` if there are none, or no *room* for more tokens.
    """
    return _check_length(lm, prompt, lm.encode(prompt.rstrip(" ") or prompt), room)


def _check_length(lm: Lm, prompt: str, ids: list[int], room: int) -> list[int]:
    if not ids:
        raise RequestError(f"the prompt {prompt!r} has no token; write at least one word")
    if len(ids) + room > lm.max_positions:
        raise RequestError(
            f"the prompt {prompt[:40]!r}... has {len(ids)} tokens, {room} tokens follow it, "
            f"but {lm.name} has {lm.max_positions} positions; make one of them shorter"
        )
    return ids


def target_rows(lm: Lm, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Ids of each (prompt, target). Raises `RequestError` if they cannot be scored."""
    rows = [lm.with_target(prompt, target) for prompt, target in pairs]
    for (prompt, _), (ids, target_ids) in zip(pairs, rows, strict=True):
        _check_length(lm, prompt, ids, len(target_ids) - 1)
    return rows


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, in float64 (float32 if the device has no float64)."""
    finest = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.to(finest).log_softmax(-1)
