"""The shape of a hypernetwork: from gradient factors to one low-rank change for each edit."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lmedit.trace import added, changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from lmedit.hyper.factors import Factors
    from lmedit.models import Lm
    from lmedit.types import Site


@dataclass(frozen=True)
class EditBatch:
    """What a network is given of B edits: factors at each matrix, and the texts.

    A text is the prompt with the new answer: ids (B, T) padded on the right, lengths (B,).
    """

    factors: Mapping[Site, Factors]
    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class LowRankBatch:
    """For each of B edits a change of one matrix: left @ right, (B, d_out, r) @ (B, r, d_in)."""

    left: Tensor
    right: Tensor


class Hypernetwork(nn.Module):
    """Maps the factors of B edits, and their texts, to B changes of every located matrix.

    Each edit's change depends on that edit alone, in whatever batch it stands.
    """

    def prime(self, factors: Mapping[Site, Factors]) -> None:
        """Take in factors of some training edits before the training, to normalise by."""

    def forward(self, edits: EditBatch) -> dict[Site, LowRankBatch]:
        """The changes, in float32."""
        raise NotImplementedError


@contextmanager
def in_place(lm: Lm, changes: Mapping[Site, LowRankBatch], edit_of: Tensor) -> Iterator[None]:
    """Run the model as if row i of the batch had edit ``edit_of[i]``; the weights stay.

    ``W x + left (right x)`` is what the edited matrix gives, so one forward pass serves many edits
    and the gradient reaches left and right without a copy of any weight.
    """
    with ExitStack() as stack:
        for site, change in changes.items():
            left, right = change.left[edit_of], change.right[edit_of]

            def add(x: Tensor, out: Tensor, left: Tensor = left, right: Tensor = right) -> Tensor:
                rows, outs = (t.reshape(len(right), -1, t.shape[-1]) for t in (x, out))
                return added(rows, outs, left, right).reshape(out.shape)

            stack.enter_context(changed(lm.module_of(site), add))
        yield
