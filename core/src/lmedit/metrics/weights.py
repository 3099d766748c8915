"""How much an update changes the weights: relative norm, largest singular value, bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.models.rounding import share_kept
from lmedit.types import LowRank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Delta, Site, Update

EXACT_UP_TO = 1024
"""If the smaller side of a matrix is at most this, its singular values are computed exactly."""
BLOCK, STEPS, TOLERANCE = 8, 500, 1e-10
HALF = 2
"""Bytes of a half-precision number."""


def frobenius(delta: Delta) -> float:
    """The Frobenius norm of a change. A `LowRank` change is not multiplied out.

    ||L R||_F^2 = tr(L^T L R R^T): two r x r Gram matrices, in float64.
    """
    if not isinstance(delta, LowRank):
        return _norm(delta.values)
    left, right = delta.left.cpu().double(), delta.right.cpu().double()
    squared = ((left.T @ left) * (right @ right.T)).sum()
    return float(squared.clamp(min=0).sqrt())


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix.cpu(), dtype=torch.float64))


def relative_norms(lm: Lm, update: Update) -> dict[str, float | None]:
    """||dW||_F / ||W||_F by parameter; W is the weight in *lm* now. None if W is 0."""
    return {
        site.name: _ratio(frobenius(delta), _norm(lm.weight(site)))
        for site, delta in update.deltas.items()
    }


def spectral_growth(lm: Lm, update: Update, seed: int = 0) -> dict[str, float | None]:
    """sigma_1(W + dW) / sigma_1(W) by parameter; W is the weight in *lm* now. None if W is 0."""
    return {
        site.name: _ratio(
            largest_singular_value(lm.weight(site), delta, seed),
            largest_singular_value(lm.weight(site), None, seed),
        )
        for site, delta in update.deltas.items()
    }


def drift(lm: Lm, untouched: Mapping[Site, Tensor]) -> dict[str, float | None]:
    """The distance of the weights of *lm* from *untouched* (storage layout), for the worst tensor.

    `relative_norm` is ||W' - W||_F / ||W||_F, `spectral_growth` is sigma_1(W') / sigma_1(W). None
    if *untouched* is empty.
    """
    norms, growths = [], []
    for site, values in untouched.items():
        before = values.reshape(values.shape[0], -1).double()
        now = lm.snapshot(site).reshape(before.shape).double()
        norms.append(_ratio(_norm(now - before), _norm(before)))
        growths.append(_ratio(largest_singular_value(now), largest_singular_value(before)))
    return {"relative_norm": worst(norms), "spectral_growth": worst(growths)}


def survival(lm: Lm, update: Update) -> dict[str, float]:
    """The share of each change that survives rounding to the model's half precision.

    By parameter it is (dW' k . dW k) / |dW k|^2. The matrix dW' is the change after rounding. The
    vector k is the leading right singular vector of the change, for a rank-one change its key.
    Parameters of full precision are left out.
    """
    found = {}
    for site, delta in update.deltas.items():
        weight = lm.weight(site)
        if weight.dtype.itemsize > HALF or not frobenius(delta):
            continue
        change = delta.dense().to(weight.device, torch.float32)
        before = weight.float()
        left = (before + change).to(weight.dtype).float() - before
        found[site.name] = share_kept(change, left)
    return found


def worst(values: Iterable[float | None]) -> float | None:
    """The largest of the measured *values*: the value of the tensor that changed most."""
    return max((value for value in values if value is not None), default=None)


@torch.no_grad()
def largest_singular_value(
    weight: Tensor, delta: Delta | None = None, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> float:
    """sigma_1 of *weight* + *delta*: by `torch.linalg` if small, else by power iteration.

    Power iteration uses a block of 8 vectors, drawn with *seed*, until sigma_1 of the block's image
    does not change. Its error falls with sigma_9 / sigma_1, and the result is never too large. It
    runs on the CPU, in float64.
    """
    matrix = weight.cpu().double()
    if min(matrix.shape) <= exact_up_to:
        change = 0 if delta is None else delta.dense().cpu().double()
        return float(torch.linalg.matrix_norm(matrix + change, 2))
    random = torch.Generator().manual_seed(seed)
    block = torch.randn(matrix.shape[1], BLOCK, generator=random, dtype=torch.float64)
    found = 0.0
    for _ in range(STEPS):
        image = _times(matrix, delta, torch.linalg.qr(block).Q)
        last, found = found, float(torch.linalg.matrix_norm(image, 2))
        if abs(found - last) <= TOLERANCE * found:
            break
        block = _times_transposed(matrix, delta, torch.linalg.qr(image).Q)
    return found


def _times(matrix: Tensor, delta: Delta | None, block: Tensor) -> Tensor:
    """(W + dW) X; a `LowRank` change is not multiplied out."""
    image = matrix @ block
    for factor in _factors(delta):
        block = factor @ block
    return image if delta is None else image + block


def _times_transposed(matrix: Tensor, delta: Delta | None, block: Tensor) -> Tensor:
    """(W + dW)^T Y; a `LowRank` change is not multiplied out."""
    image = matrix.T @ block
    for factor in reversed(_factors(delta)):
        block = factor.T @ block
    return image if delta is None else image + block


def _factors(delta: Delta | None) -> list[Tensor]:
    """The factors of *delta*, in the order of multiplication."""
    if delta is None:
        return []
    factors = [delta.right, delta.left] if isinstance(delta, LowRank) else [delta.values]
    return [factor.cpu().double() for factor in factors]


def patch_bytes(update: Update) -> int:
    """Bytes of the update's tensors. A patch file adds a header of a few hundred bytes."""
    return sum(
        tensor.numel() * tensor.element_size()
        for delta in update.deltas.values()
        for tensor in delta.tensors().values()
    )


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None
