"""The texts of the value's loss, run from the subject's last token and the edited layer on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from lmedit.replay import adds_straight, keep
from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request
    from lmedit_rome.options import RomeOptions

ESSENCE = "{} is a"


@dataclass(frozen=True)
class Rows:
    """The texts of the value's loss as token ids, and what is read where.

    The last row is the essence prompt "{subject} is a". `start` is each row's subject's last
    token; positions count from there.
    """

    ids: list[list[int]]
    start: list[int]
    target: list[int]
    target_at: list[list[int]]
    essence_at: int


def rows_of(lm: Lm, request: Request, templates: Sequence[str], options: RomeOptions) -> Rows:
    """Each context with the prompt and all target tokens but the last; then the essence prompt."""
    target = lm.with_target(request.text, request.target_new)[1]
    if options.target_tokens == "first":
        target = target[:1]
    if options.value_contexts == "bare":
        templates = ["{}"]
    found = [lm.subject_last(request.prompt, request.subject, t) for t in templates]
    essence, at = lm.subject_last(ESSENCE, request.subject)
    if options.kl_position == "subject_last":
        essence = essence[: at + 1]  # nothing that comes later is read
    return Rows(
        ids=[*(ids + target[:-1] for ids, _ in found), essence],
        start=[*(index for _, index in found), at],
        target=target,
        target_at=[
            [len(ids) - 1 - index + step for step in range(len(target))] for ids, index in found
        ],
        essence_at=0 if options.kl_position == "subject_last" else len(essence) - 1 - at,
    )


@dataclass(frozen=True)
class _Row:
    """One row: its ids, where it starts to be run, the places that are read, its request."""

    ids: list[int]
    start: int
    at: list[int]
    request: int


class Run:
    """All requests' rows, in one piece or several.

    Read are of each request first every context's target tokens, then the one after the essence
    prompt.
    """

    def __init__(self, lm: Lm, layer: int, texts: Sequence[Rows], pieces: int = 1) -> None:
        """Several *pieces* are run one after the other, and once more for the gradient."""
        rows = [
            _Row(ids, start, at, number)
            for number, text in enumerate(texts)
            for ids, start, at in zip(
                text.ids, text.start, [*text.target_at, [text.essence_at]], strict=True
            )
        ]
        size = -(-len(rows) // pieces)
        self.pieces = [
            _Piece(lm, layer, rows[start : start + size]) for start in range(0, len(rows), size)
        ]
        self.targets = [
            torch.tensor(text.target, device=lm.device).expand(len(text.target_at), -1)  # (N, T)
            for text in texts
        ]

    def log_probabilities(self, deltas: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """With the *deltas* at the subjects: log P of the targets (N, T), and of all after essence.

        For each request.
        """
        stacked = torch.stack(list(deltas))
        if len(self.pieces) == 1:
            logits = self.pieces[0](stacked)
        else:
            logits = torch.cat([checkpoint(p, stacked, use_reentrant=False) for p in self.pieces])
        sizes = [target.numel() + 1 for target in self.targets]
        parts = torch.split(logits.to(stacked.dtype).log_softmax(-1), sizes)
        found = []
        for log_p, target in zip(parts, self.targets, strict=True):
            of_target = log_p[:-1].reshape(*target.shape, -1)  # (N, T, V)
            found.append((of_target.gather(2, target[..., None]).squeeze(2), log_p[-1]))
        return found


class _Piece:
    """Some rows, run once up to their starts and the edited layer; called for the rest."""

    def __init__(self, lm: Lm, layer: int, rows: Sequence[_Row]) -> None:
        straight = adds_straight(lm, layer, rows[0].ids)
        # Where nothing follows the MLP in its block, delta enters the next block.
        self.module = None if straight else lm.mlp_out_module(layer)
        first = layer + straight
        self.kept = keep(lm, [row.ids for row in rows], [row.start for row in rows], first)
        self.request_of = [row.request for row in rows]
        places = [(number, at) for number, row in enumerate(rows) for at in row.at]
        self.rows, self.at = torch.tensor(places, device=lm.device).T

    def __call__(self, deltas: Tensor) -> Tensor:
        """Logits (n, V) at the places that are read, with *deltas* (R, H) at the subjects."""
        of_rows = deltas[self.request_of][:, None]  # (B, 1, H)

        def add_delta(out: Tensor) -> Tensor:
            rows = out.reshape(*self.kept.shape, -1)  # (B, S, H)
            moved = rows[:, :1] + of_rows.to(rows)
            return torch.cat([moved, rows[:, 1:]], dim=1).reshape(out.shape)

        if self.module is None:
            entered = self.kept.entered_by(add_delta)
            return entered.gathered(self.rows, self.at, whole_mlp=False)
        with changed(self.module, lambda _, out: add_delta(out)):
            return self.kept.gathered(self.rows, self.at)
