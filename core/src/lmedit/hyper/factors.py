"""The gradient of a loss with respect to a linear layer's matrix, as a sum of factors.

For ``y = W x`` at N tokens, dL/dW = sum_n delta_n x_n^T with delta = dL/dy (section 3 of Mitchell
et al. 2022): one exact rank-one term for each token.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Site


@dataclass(frozen=True)
class Factors:
    """The factors of B edits at one matrix in float32: inputs and output gradients.

    `mask` tells which tokens count. Rows that do not count are zero in both.
    """

    x: Tensor  # (B, N, d_in)
    delta: Tensor  # (B, N, d_out)
    mask: Tensor  # (B, N), bool

    def dense(self) -> Tensor:
        """dL/dW of every edit, (B, d_out, d_in)."""
        return self.delta.mT @ self.x


def factors_of(
    lm: Lm, sites: Sequence[Site], rows: int, loss: Callable[[], Tensor]
) -> dict[Site, Factors]:
    """The factors of the gradient of ``loss()`` at *sites*; one forward and one backward pass.

    ``loss()`` runs *rows* rows of tokens and returns the sum of one loss per row. A token counts if
    both its factors are not zero.
    """
    inputs: dict[Site, Tensor] = {}
    leaves: dict[Site, Tensor] = {}
    with ExitStack() as stack, torch.enable_grad():
        for site in sites:

            def add(x: Tensor, out: Tensor, site: Site = site) -> Tensor:
                inputs[site] = x.detach()
                leaves[site] = torch.zeros_like(out, requires_grad=True)
                return out + leaves[site]

            stack.enter_context(changed(lm.module_of(site), add))
        total = loss()
    gradients = torch.autograd.grad(total, [leaves[site] for site in sites])
    return {
        site: _mask_uncounted(
            inputs[site].reshape(rows, -1, inputs[site].shape[-1]).float(),
            gradient.reshape(rows, -1, gradient.shape[-1]).float(),
        )
        for site, gradient in zip(sites, gradients, strict=True)
    }


def _mask_uncounted(x: Tensor, delta: Tensor) -> Factors:
    mask = (x != 0).any(-1) & (delta != 0).any(-1)
    return Factors(x * mask[..., None], delta * mask[..., None], mask)


def only_at(factors: Factors, rows: Tensor, positions: Tensor) -> Factors:
    """The factors where only the tokens (*rows*, *positions*), (n,) each, count."""
    mask = torch.zeros_like(factors.mask)
    mask[rows.to(mask.device), positions.to(mask.device)] = True
    return Factors(factors.x * mask[..., None], factors.delta * mask[..., None], mask)


def cut_out(factors: Factors, row: int) -> Factors:
    """The factors of one edit, without the tokens that do not count."""
    kept = factors.mask[row]
    return Factors(factors.x[row, kept][None], factors.delta[row, kept][None], kept[kept][None])


def stack(found: Sequence[Mapping[Site, Factors]]) -> dict[Site, Factors]:
    """Put the factors of single edits into one batch, padded with zeros."""
    return {site: _pad([each[site] for each in found]) for site in found[0]}


def _pad(parts: Sequence[Factors]) -> Factors:
    width = max(part.mask.shape[1] for part in parts)
    x, delta = (
        parts[0].x.new_zeros(len(parts), width, tensor.shape[-1])
        for tensor in (parts[0].x, parts[0].delta)
    )
    mask = parts[0].mask.new_zeros(len(parts), width)
    for i, part in enumerate(parts):
        n = part.mask.shape[1]
        x[i, :n], delta[i, :n], mask[i, :n] = part.x[0], part.delta[0], part.mask[0]
    return Factors(x, delta, mask)
