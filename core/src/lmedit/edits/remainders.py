"""The size of a difference between two matrices: its norm, its rank and where its energy lies.

The energy of a matrix is its squared Frobenius norm, the sum of its squared singular values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 4096
"""How many rows are read in double precision at the same time."""
GRAM = 4096
"""Up to this smaller side, all singular values are computed."""
DIRECTIONS = 64
"""How many are computed of a larger matrix."""
SHOWN = 4
"""How many shares of the energy are told."""


@dataclass(frozen=True)
class Remainder:
    """What a difference is: norms, and for a matrix its rank and the shares of its energy."""

    norm: float
    relative_norm: float | None
    """norm / norm of the base's tensor."""
    largest: float
    """The largest absolute entry."""
    rank: int | None = None
    """How many singular values are above rounding; None if it is no matrix."""
    energy: tuple[float, ...] = ()
    """The shares of the energy in the first directions, the largest first."""
    index: int | None = None
    """The expert with the largest difference; rank and energy are those of its matrix."""


def measure_remainder(difference: Tensor, base: Tensor, eps: float) -> Remainder:
    """Measure *difference* (finite) of a tensor whose unedited values are *base*.

    *eps* is the spacing of the coarser number type at 1. A singular value is above rounding if it
    exceeds eps x rms(base) x (sqrt(rows) + sqrt(columns)). This is about the largest singular value
    of a matrix of rounding errors (Bai and Yin 1993).
    """
    index = None
    norm, whole = _norm(difference), _norm(base)
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    if difference.dim() == 3:
        index = int(difference.flatten(1).abs().amax(1).argmax())
        difference, base = difference[index], base[index]
    ratio = norm / whole if whole else None
    if difference.dim() != 2 or min(difference.shape) == 0:
        return Remainder(norm, ratio, largest)
    squares = _squared_singular_values(difference)
    rms = _norm(base) / max(1, base.numel()) ** 0.5
    rows, columns = difference.shape
    least = max(eps * rms * (rows**0.5 + columns**0.5), 1e-7 * float(squares[0]) ** 0.5)
    rank = int((squares.sqrt() > least).sum())
    total = _norm(difference) ** 2
    energy = [float(each) / total for each in squares[: min(rank, SHOWN)]] if total else []
    return Remainder(norm, ratio, largest, rank, tuple(energy), index)


def _norm(tensor: Tensor) -> float:
    parts = [torch.linalg.vector_norm(part.double()) for part in _in_rows(tensor)]
    return float(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0


def _in_rows(tensor: Tensor) -> list[Tensor]:
    return list(torch.split(tensor, ROWS)) if tensor.dim() else [tensor]


def _squared_singular_values(matrix: Tensor) -> Tensor:
    """The squared singular values of *matrix*, the largest first, in float64.

    They are the eigenvalues of its Gram matrix. A matrix whose sides are both above `GRAM` gives
    only the first `DIRECTIONS`, by subspace iteration from a fixed seed.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if tall.shape[1] <= GRAM:
        gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
        for part in torch.split(tall, ROWS):
            rows = part.double()
            gram += rows.T @ rows
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    draw = torch.Generator().manual_seed(0)
    block = torch.randn(tall.shape[1], DIRECTIONS, generator=draw)
    values = tall.float()
    for _ in range(4):
        block = torch.linalg.qr(values.T @ torch.linalg.qr(values @ block).Q).Q
    return torch.linalg.svdvals((values @ block).double()).square()
