"""How much an update changes the weights: relative norm, largest singular value, bytes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from lmedit.types import LowRank

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.types import Delta, Site, Update

EXACT_UP_TO = 1024
"""The smaller side of a matrix up to which its singular values are computed outright."""
BLOCK, STEPS, TOLERANCE = 8, 500, 1e-10
HALF, ROUNDS = 2, 10
"""Bytes of a number of half precision; rounds of the iteration for a change's own key."""
PROTOCOL: Mapping[str, str] = MappingProxyType({
    "relative_norm": "Frobenius norm of the change over that of the matrix before",
    "spectral_growth": "largest singular value after over before",
    "survival": "share of the change at its own key that rounding leaves",
    "patch_bytes": "bytes of the update's tensors, as a patch stores them",
})  # fmt: skip


def frobenius(delta: Delta) -> float:
    """The Frobenius norm of a change; of `LowRank` without forming it.

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
    """||dW||_F / ||W||_F by parameter, W as it is in *lm* now; None where W is 0."""
    return {
        site.parameter: _ratio(frobenius(delta), _norm(lm.weight(site)))
        for site, delta in update.deltas.items()
    }


def spectral_growth(lm: Lm, update: Update, seed: int = 0) -> dict[str, float | None]:
    """sigma_1(W + dW) / sigma_1(W) by parameter, W as it is in *lm* now; None where W is 0."""
    return {
        site.parameter: _ratio(
            largest_singular_value(lm.weight(site), delta, seed),
            largest_singular_value(lm.weight(site), None, seed),
        )
        for site, delta in update.deltas.items()
    }


def drift(lm: Lm, untouched: Mapping[Site, Tensor]) -> dict[str, float | None]:
    """How far the weights of *lm* are from *untouched* (storage layout), by the worst tensor.

    `relative_norm` ||W' - W||_F / ||W||_F and `spectral_growth` sigma_1(W') / sigma_1(W); None
    where nothing was touched.
    """
    norms, growths = [], []
    for site, values in untouched.items():
        before = values.reshape(values.shape[0], -1).double()
        now = lm.snapshot(site).reshape(before.shape).double()
        norms.append(_ratio(_norm(now - before), _norm(before)))
        growths.append(_ratio(largest_singular_value(now), largest_singular_value(before)))
    return {"relative_norm": worst(norms), "spectral_growth": worst(growths)}


def survival(lm: Lm, update: Update) -> dict[str, float]:
    """How much of each change is left after rounding to the model's half precision, at its own key.

    By parameter: with k the change's leading right singular vector (a rank-one change's key) and
    dW' what rounding leaves, (dW' k . dW k) / |dW k|^2. Parameters of full precision are left out.
    """
    found = {}
    for site, delta in update.deltas.items():
        weight = lm.weight(site)
        if weight.dtype.itemsize > HALF or not frobenius(delta):
            continue
        change = delta.dense().to(weight.device, torch.float32)
        before = weight.float()
        left = (before + change).to(weight.dtype).float() - before
        k = _leading(change)
        wanted = (change @ k).double()
        found[site.parameter] = float((left @ k).double() @ wanted / (wanted @ wanted))
    return found


def _leading(matrix: Tensor) -> Tensor:
    """The leading right singular vector (d_in,), by power iteration from the longest row."""
    k = matrix[matrix.norm(dim=1).argmax()]
    for _ in range(ROUNDS):
        k = matrix.T @ (matrix @ (k / k.norm()))
    return k / k.norm()


def worst(values: Iterable[float | None]) -> float | None:
    """The largest of *values* that were measured: how much the tensor changed that changed most."""
    return max((value for value in values if value is not None), default=None)


@torch.no_grad()
def largest_singular_value(
    weight: Tensor, delta: Delta | None = None, seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> float:
    """sigma_1 of *weight* + *delta*: by `torch.linalg` if small, else by power iteration.

    Power iteration runs on a block of 8 vectors that starts from *seed*, until sigma_1 of the
    block's image settles; its error falls with sigma_9 / sigma_1, and it never overstates.
    On the CPU, in float64.
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
    """(W + dW) X, a `LowRank` change never formed."""
    image = matrix @ block
    for factor in _factors(delta):
        block = factor @ block
    return image if delta is None else image + block


def _times_transposed(matrix: Tensor, delta: Delta | None, block: Tensor) -> Tensor:
    """(W + dW)^T Y, a `LowRank` change never formed."""
    image = matrix.T @ block
    for factor in reversed(_factors(delta)):
        block = factor.T @ block
    return image if delta is None else image + block


def _factors(delta: Delta | None) -> list[Tensor]:
    """The matrices of *delta*, the first to multiply first."""
    if delta is None:
        return []
    factors = [delta.right, delta.left] if isinstance(delta, LowRank) else [delta.values]
    return [factor.cpu().double() for factor in factors]


def patch_bytes(update: Update) -> int:
    """Bytes of the update's tensors; a patch file adds its header of a few hundred bytes."""
    return sum(
        tensor.numel() * tensor.element_size()
        for delta in update.deltas.values()
        for tensor in delta.tensors().values()
    )


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None
