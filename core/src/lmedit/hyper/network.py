"""The interface of a hypernetwork: gradient factors in, one low-rank change per edit out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lmedit.trace import add_low_rank, changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from lmedit.hyper.factors import Factors
    from lmedit.models import Lm
    from lmedit.types import Site


@dataclass(frozen=True)
class EditBatch:
    """The input of a network for B edits: the factors at each matrix, and the texts.

    A text is the prompt with the new answer: ids (B, T), padded on the right, and lengths (B,).
    """

    factors: Mapping[Site, Factors]
    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class LowRankBatch:
    """One matrix's change for each of B edits: left @ right, (B, d_out, r) @ (B, r, d_in)."""

    left: Tensor
    right: Tensor


class Hypernetwork(nn.Module):
    """Maps the factors and texts of B edits to B changes of every located matrix.

    The change of an edit depends on that edit alone, not on the rest of the batch. A *joint*
    network returns one change of each matrix, (1, d_out, r) and (1, r, d_in), for all B edits.
    """

    joint: ClassVar[bool] = False
    """Whether the network returns one change for all edits of a batch."""
    answers: ClassVar[bool] = False
    """Whether it takes only the factors of tokens that predict an answer; see `edit_factors`."""

    def prime(self, factors: Mapping[Site, Factors]) -> None:
        """Compute statistics of the factors of some training edits, before the training."""

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        """The changes, in float32."""
        raise NotImplementedError


@contextmanager
def edited_rows(lm: Lm, changes: Mapping[Site, LowRankBatch], edit_of: Tensor) -> Iterator[None]:
    """Compute row i of each batch with edit ``edit_of[i]`` in the block.

    The weights do not change: each row gets ``W x + left (right x)``, the output of the edited
    matrix. So one forward pass serves many edits, and left and right receive gradients.
    """
    with ExitStack() as stack:
        for site, change in changes.items():
            left, right = change.left[edit_of], change.right[edit_of]

            def add(x: Tensor, out: Tensor, left: Tensor = left, right: Tensor = right) -> Tensor:
                rows, outs = (t.reshape(len(right), -1, t.shape[-1]) for t in (x, out))
                return add_low_rank(rows, outs, left, right).reshape(out.shape)

            stack.enter_context(changed(lm.module_of(site), add))
        yield
