"""The texts of equation 4's loss, run from the subject's last token and the edited layer on."""

from __future__ import annotations

from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.checkpoint import checkpoint

from lmedit.replay import adds_straight, keep
from lmedit.replay.batches import by_length
from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Request
    from lmedit.values.options import ValueOptions

ESSENCE = "{} is a"
Place = Literal["mlp", "attention"]
"""Where delta is added in a block: at the output of its MLP matrix, or of its attention matrix."""


@dataclass(frozen=True)
class Rows:
    """The texts of one request's loss as token ids, and the positions to read.

    The last row is the essence prompt "{subject} is a". `start` is the index of the subject's last
    token in each row. Positions count from there.
    """

    ids: list[list[int]]
    start: list[int]
    target: list[int]
    target_at: list[list[int]]
    essence_at: int


def rows_of(lm: Lm, request: Request, templates: Sequence[str], options: ValueOptions) -> Rows:
    """Rows of each context with the prompt and the target without its last token, and the essence.

    The essence prompt comes last.
    """
    if options.value_contexts == "bare":
        templates = ["{}"]
    whole = lm.with_target(request.text, request.target_new)[1]
    target = whole[:1] if options.target_tokens == "first" else whole
    found = [_encode_in_context(lm, request, template, whole) for template in templates]
    essence, at = lm.subject_last(ESSENCE, request.subject)
    if options.kl_position == "subject_last":
        essence = essence[: at + 1]  # the rest is not read
    return Rows(
        ids=[*(ids + target[:-1] for ids, _ in found), essence],
        start=[*(index for _, index in found), at],
        target=target,
        target_at=[
            [len(ids) - 1 - index + step for step in range(len(target))] for ids, index in found
        ],
        essence_at=0 if options.kl_position == "subject_last" else len(essence) - 1 - at,
    )


def _encode_in_context(
    lm: Lm, request: Request, template: str, target: Sequence[int]
) -> tuple[list[int], int]:
    """Ids before *target* in the context *template*, and the index of the subject's last token.

    A token can hold the prompt's last characters and the target's first ones. It is part of the
    target, so it is not among these ids.
    """
    ids, index = lm.subject_last(request.prompt, request.subject, template)
    before, _, after = template.partition("{}")
    asked = lm.behind(before, request.text) + after
    shorter, found = lm.with_target(asked, request.target_new)
    if found == list(target) and shorter != ids:
        return shorter, min(index, len(shorter) - 1)
    return ids, index


@dataclass(frozen=True)
class _Row:
    """One row: its ids, the first position to run, its request, and the positions to read."""

    ids: list[int]
    start: int
    request: int
    at: list[int] = field(default_factory=list)

    def holds(self, ids: list[int], start: int, request: int) -> bool:
        """Whether this row begins with another row."""
        return (start, request) == (self.start, self.request) and self.ids[: len(ids)] == ids


def _once(texts: Sequence[Rows]) -> tuple[list[_Row], list[list[tuple[int, int]]]]:
    """The rows to run, and for each request the places (row, position) to read.

    A row with which another one begins is read there and does not run. A request's places are the
    target tokens of every context, then the essence's place.
    """
    rows: list[_Row] = []
    reads: list[list[tuple[int, int]]] = []
    for number, text in enumerate(texts):
        reads.append([])
        places = [*text.target_at, [text.essence_at]]
        for ids, start, at in zip(text.ids, text.start, places, strict=True):
            held = (i for i, row in enumerate(rows) if row.holds(ids, start, number))
            i = next(held, len(rows))
            if i == len(rows):
                rows.append(_Row(ids, start, number))
            rows[i].at.extend(at)
            reads[-1] += [(i, place) for place in at]
    return rows, reads


def _in_groups(rows: Sequence[_Row], most: int) -> list[list[int]]:
    """The numbers of *rows* in groups of *most* at most, each for one pass.

    A pass runs all its rows to the end of the longest. So long rows do not run with short ones if
    the padding would cost more than a further pass.
    """
    lengths = [len(row.ids) - row.start for row in rows]
    return [
        sorted(group)[start : start + most]
        for group in by_length(lengths, sum(lengths) * len(rows))
        for start in range(0, len(group), most)
    ]


@dataclass(frozen=True)
class Seen:
    """The results of one request's rows."""

    of_target: Tensor  # (N, T) log P of the target's tokens after each context
    essence: Tensor  # (V,) log P after the essence prompt
    topped: bool
    """Whether every target token is the most probable one in every context."""


class LossRows:
    """The rows that the losses of all requests need, run in one chunk or several."""

    def __init__(
        self,
        lm: Lm,
        layer: int,
        texts: Sequence[Rows],
        chunks: int = 1,
        places: Sequence[Place] = ("mlp",),
    ) -> None:
        """Several *chunks*, for want of memory, run again for the gradient."""
        rows, reads = _once(texts)
        groups = _in_groups(rows, -(-len(rows) // chunks))
        straight = tuple(places) == ("mlp",) and adds_straight(lm, layer, rows[0].ids)
        added = () if straight else places
        self.again = chunks > 1
        self.chunks = [_Chunk(lm, layer, [rows[i] for i in group], added) for group in groups]
        every = [(i, place) for group in groups for i in group for place in rows[i].at]
        numbers = {place: number for number, place in enumerate(every)}
        self.targets = [
            torch.tensor(text.target, device=lm.device).expand(len(text.target_at), -1)  # (N, T)
            for text in texts
        ]
        found = [torch.tensor([numbers[at] for at in of], device=lm.device) for of in reads]
        self.at = [each[:-1].view_as(of) for each, of in zip(found, self.targets, strict=True)]
        self.essence_at = torch.stack([each[-1] for each in found])
        self.going = set(range(len(texts)))
        self.request_of = [rows[i].request for i, _ in every]  # of each place to read

    def log_probabilities(self, deltas: Sequence[Tensor], going: Sequence[int]) -> list[Seen]:
        """The results of the requests *going*, with the *deltas* at the subjects' last tokens.

        A delta is (H,), or (P, H) for P places; there is one for each request. The rows of
        requests that are not *going* run no more, so a later call cannot ask for them.
        """
        if self.going != set(going):
            self._drop_all_but(set(going))
        stacked = torch.stack(list(deltas))
        if self.again:
            parts = [checkpoint(c, stacked, use_reentrant=False) for c in self.chunks]
        else:
            parts = [chunk(stacked) for chunk in self.chunks]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        log_p = logits.to(stacked.dtype).log_softmax(-1)  # (n, V)
        best = log_p.detach().argmax(-1)
        return [
            Seen(log_p[at, target], log_p[essence], bool((best[at] == target).all()))
            for at, target, essence in (
                (self.at[i], self.targets[i], self.essence_at[i]) for i in going
            )
        ]

    def _drop_all_but(self, going: set[int]) -> None:
        """Drop the rows of other requests, and count the places to read anew."""
        self.chunks = [part for chunk in self.chunks if (part := chunk.take(going))]
        stay = torch.tensor([request in going for request in self.request_of])
        number = (stay.cumsum(0) - 1).to(self.essence_at.device)
        self.at = [number[at] for at in self.at]
        self.essence_at = number[self.essence_at]
        self.request_of = [request for request in self.request_of if request in going]
        self.going = going


def add_at(states: Tensor, start: Tensor, more: Tensor) -> Tensor:
    """Add *more* (B, 1, H) to *states* (B, S, H) at the tokens *start* (B,)."""
    if not bool(start.any()):
        return torch.cat([states[:, :1] + more, states[:, 1:]], dim=1)
    here = torch.arange(states.shape[1], device=states.device) == start[:, None]  # (B, S)
    return states + here[..., None] * more


class _Chunk:
    """Some rows, run once up to their starts and the edited layer; a call runs the rest."""

    def __init__(self, lm: Lm, layer: int, rows: Sequence[_Row], places: Sequence[Place]) -> None:
        """Without *places* nothing follows the MLP in its block: delta enters the next block."""
        find = {"mlp": lm.mlp_value_module, "attention": lm.attention_out_module}
        self.modules = [find[place](layer) for place in places]
        first = layer + (not places)
        self.kept = keep(lm, [row.ids for row in rows], [row.start for row in rows], first)
        self.request_of = [row.request for row in rows]
        at = [(number, place) for number, row in enumerate(rows) for place in row.at]
        self.rows, self.at = torch.tensor(at, device=lm.device).T

    def take(self, requests: set[int]) -> _Chunk | None:
        """The rows of *requests* alone; None if there are none."""
        stay = [i for i, request in enumerate(self.request_of) if request in requests]
        if not stay:
            return None
        part = copy(self)
        part.kept = self.kept.take(stay)
        part.request_of = [self.request_of[i] for i in stay]
        number = {old: new for new, old in enumerate(stay)}
        read = [i for i, row in enumerate(self.rows.tolist()) if row in number]
        part.rows = torch.tensor([number[int(self.rows[i])] for i in read], device=self.at.device)
        part.at = self.at[read]
        return part

    def __call__(self, deltas: Tensor) -> Tensor:
        """Logits (n, V) at the places to read, with *deltas* (R, [P,] H) at the subjects."""
        of_rows = deltas[self.request_of]  # (B, [P,] H)
        if not self.modules:
            entered = self.kept.change_entering(self._adding(of_rows))
            return entered.logits_at(self.rows, self.at, whole_mlp=False)
        with ExitStack() as stack:
            several = of_rows if of_rows.dim() == 3 else of_rows[:, None]
            for place, module in enumerate(self.modules):
                change = partial(_output_of, self._adding(several[:, place]))
                stack.enter_context(changed(module, change))
            return self.kept.logits_at(self.rows, self.at)

    def _adding(self, deltas: Tensor) -> Callable[[Tensor], Tensor]:
        """Add *deltas* (B, H) at the first position of each row."""

        def add(out: Tensor) -> Tensor:
            rows = out.reshape(*self.kept.shape, -1)  # (B, S, H)
            return add_at(rows, self.kept.start, deltas[:, None].to(rows)).reshape(out.shape)

        return add


def _output_of(add: Callable[[Tensor], Tensor], _: Tensor, out: Tensor) -> Tensor:
    """``add(out)``, for a module's input and output."""
    return add(out)
