"""Edits that are not in the weights: each row of a batch runs as if its edit were in the model.

The edited matrix gives ``W x + dW x``. So one forward pass scores many edits, and no weight is
written. Below the lowest edited block, the states are the unedited model's; they are kept for the
next edits of the same texts. The result equals a change of the weights up to rounding. It is used
only for weights of single precision or finer: in half precision, rounding changes the edit.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.models.families import is_matrix
from lmedit.replay.passes import Entering, Kept, enter, resume
from lmedit.replay.ways import ways_of
from lmedit.trace import add_low_rank, changed
from lmedit.types import Dense, LowRank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Delta, Site, Update

Row = tuple[int, ...]
Batch = tuple[Row, ...]
"""Rows of ids that run together."""
GIGABYTE = 1024**3
FINEST_HALF = 2
"""Bytes of a half-precision number."""


class States:
    """Block inputs of the unedited model, by batch of rows; the least recently used are dropped.

    A row's last bits depend on the rows that it is computed with. So a batch is stored as a whole:
    what a group of cases gets does not depend on the groups that came before it.
    """

    def __init__(self, lm: Lm, gigabytes: float = 0.5) -> None:
        """*lm* must be the base model whenever `entering` is called."""
        self.lm, self.room = lm, gigabytes * GIGABYTE
        self._kept: OrderedDict[tuple[int, Batch], dict[Row, Entering]] = OrderedDict()

    def entering(self, rows: Sequence[Sequence[int]], layer: int) -> list[Entering]:
        """The input of block *layer* for each of *rows*."""
        batch = tuple(dict.fromkeys(map(tuple, rows)))
        if (layer, batch) not in self._kept:
            fresh = enter(self.lm, list(batch), layer)
            self._kept[layer, batch] = dict(zip(batch, fresh, strict=True))
            self.room -= _bytes_of(fresh)
        self._kept.move_to_end((layer, batch))
        known = self._kept[layer, batch]
        while self.room < 0 and self._kept:
            self.room += _bytes_of(self._kept.popitem(last=False)[1].values())
        return [known[tuple(row)] for row in rows]


def _bytes_of(states: Iterable[Entering]) -> int:
    return sum(each.hidden.nbytes for each in states)


class UnmergedEdits:
    """Updates of one model that are not written into its weights."""

    def __init__(self, lm: Lm, updates: Sequence[Update], states: States | None = None) -> None:
        """`fits` must hold for all *updates*. *states* of *lm* save forward passes."""
        ways_of(lm)  # before an edit is in the passes
        self.lm, self.states = lm, states or States(lm, 0.0)
        self.changes: dict[Site, dict[int, Delta]] = {}
        for number, update in enumerate(updates):
            for site, delta in update.deltas.items():
                self.changes.setdefault(site, {})[number] = delta
        blocks = [_block_of(lm, site) or 0 for site in self.changes]
        self.first = min(blocks, default=lm.n_layers)
        self.in_last = max(blocks, default=-1) == lm.n_layers - 1

    @staticmethod
    def fits(lm: Lm, update: Update) -> bool:
        """Whether *update* can stay unwritten: its matrices are in blocks and of full precision."""
        return all(
            _block_of(lm, site) is not None
            and is_matrix(lm.module_of(site))
            and lm.weight(site).element_size() > FINEST_HALF
            for site in update.deltas
        )

    @contextmanager
    def on(self, edit_of: Sequence[int]) -> Iterator[None]:
        """In the block, row i of every batch has edit ``edit_of[i]``."""
        with ExitStack() as stack:
            for site, deltas in self.changes.items():
                rows = [deltas.get(number) for number in edit_of]
                if any(delta is not None for delta in rows):
                    stack.enter_context(changed(self.lm.module_of(site), _RowDeltas(site, rows)))
            yield

    def ready(self, rows: Sequence[Sequence[int]]) -> Kept:
        """*rows* of ids, ready to run from the lowest edited block on."""
        return resume(self.lm, rows, self.first, self.states.entering(rows, self.first))


@dataclass(frozen=True)
class RowEdits:
    """For each text, the number (in *edits*) of the edit that it is read with."""

    edits: UnmergedEdits
    of: Sequence[int]

    def at(self, places: Sequence[int]) -> list[int]:
        """The edit numbers of the texts *places*."""
        return [self.of[place] for place in places]

    def repeat(self, counts: Sequence[int]) -> RowEdits:
        """The edits after text i became ``counts[i]`` texts."""
        pairs = zip(self.of, counts, strict=True)
        return RowEdits(self.edits, [edit for edit, count in pairs for _ in range(count)])


def under_one(edits: UnmergedEdits | None, count: int) -> RowEdits | None:
    """*count* texts that are all read with the first of *edits*; None without edits."""
    return None if edits is None else RowEdits(edits, [0] * count)


class _RowDeltas:
    """Add the rows' deltas to a module's output; None adds nothing."""

    def __init__(self, site: Site, rows: Sequence[Delta | None]) -> None:
        self.bias = site.parameter.endswith(".bias")
        self.count = len(rows)
        low = [(i, delta) for i, delta in enumerate(rows) if isinstance(delta, LowRank)]
        self.low_rank = _stack_factors([delta for _, delta in low]) if low else None
        self.low_rows = [i for i, _ in low]
        self.dense: dict[int, tuple[Tensor, list[int]]] = {}
        for i, delta in enumerate(rows):
            if isinstance(delta, Dense):
                self.dense.setdefault(id(delta), (delta.values, []))[1].append(i)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        whole = out.reshape(self.count, -1, out.shape[-1]).clone()
        inputs = x.reshape(self.count, -1, x.shape[-1])
        if self.bias:
            inputs = torch.ones_like(inputs[..., :1])
        if self.low_rank is not None:
            rows = self.low_rows
            whole[rows] = add_low_rank(inputs[rows], whole[rows], *self.low_rank)
        for values, rows in self.dense.values():
            more = inputs[rows].to(values.dtype) @ values.mT
            whole[rows] = whole[rows] + more.to(whole.dtype)
        return whole.reshape(out.shape)


def _stack_factors(deltas: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """Left (B, d_out, r) and right (B, r, d_in); zeros fill up all ranks to one r."""
    rank = max(delta.right.shape[0] for delta in deltas)
    left = [torch.nn.functional.pad(d.left, (0, rank - d.left.shape[1])) for d in deltas]
    right = [torch.nn.functional.pad(d.right, (0, 0, 0, rank - len(d.right))) for d in deltas]
    return torch.stack(left), torch.stack(right)


def _block_of(lm: Lm, site: Site) -> int | None:
    """The block that contains *site*; None if no block does."""
    start = f"{lm.family.blocks}."
    if not site.parameter.startswith(start):
        return None
    return int(site.parameter.removeprefix(start).partition(".")[0])
