"""Batched forward passes for several metrics; a row's result is the same in any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from lmedit.errors import RequestError
from lmedit.memory import in_parts
from lmedit.replay.passes import resume
from lmedit.replay.ways import ways_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits

T = TypeVar("T")
BATCH_TOKENS = 2048
"""Padded tokens in one forward pass. It bounds the memory and changes no score."""
PASS_TOKENS = 64
"""A further pass costs as much time as this many tokens."""


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows, the shortest first, in groups of at most *budget* padded tokens.

    The groups have the smallest cost: their padded tokens, plus `PASS_TOKENS` for each group. A row
    that is longer than the budget is a group of its own.
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
        size = max(1, budget // width)
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
    shared = _sharing([(edit, *row) for edit, row in zip(_edits(under, rows), rows, strict=True)])
    runs = list(shared)

    def run(members: Sequence[int]) -> None:
        readers = [(number, i) for number, m in enumerate(members) for i in shared[runs[m]]]
        at = [(number, place) for number, i in readers for place in places[i]]
        logits = _logits_at(lm, rows, [runs[m] for m in members], at, under)
        parts = torch.split(logits, [len(places[i]) for _, i in readers])
        for (_, i), part in zip(readers, parts, strict=True):
            answers[i] = read(i, part)

    for group in by_length([len(rows[i]) for i in runs], batch_tokens):
        for _ in in_parts(run, group, len(group)):
            pass
    return [answers[i] for i in range(len(rows))]


def _edits(under: RowEdits | None, rows: Sequence[Sequence[int]]) -> Sequence[int]:
    return [0] * len(rows) if under is None else under.of


def _logits_at(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    which: Sequence[int],
    at: Sequence[tuple[int, int]],
    under: RowEdits | None,
) -> Tensor:
    """Run the rows *which* together; logits (n, V) at the places (place in *which*, token)."""
    ids = [rows[i] for i in which]
    where = torch.tensor(at, device=lm.device).reshape(-1, 2).T
    if under is None:
        return resume(lm, ids, 0, []).logits_at(*where, whole_mlp=False)
    with under.edits.on(under.at(which)):
        return under.edits.ready(ids).logits_at(*where, whole_mlp=under.edits.in_last)


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
