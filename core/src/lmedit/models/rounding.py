"""What rounding to a number type leaves of a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEAST_KEPT = 0.5
"""An edit is refused if rounding keeps less than this share of it."""
ROUNDS = 10
"""Iterations to find a change's own key."""


def share_kept(change: Tensor, left: Tensor) -> float:
    """The share of *change* that is in *left*, what rounding leaves of it; both (d_out, d_in).

    It is (left k . change k) / |change k|^2 for the leading right singular vector k of *change*; 1
    for a change of zeros.
    """
    if not bool(change.any()):
        return 1.0
    k = _leading(change)
    wanted = (change @ k).double()
    return float((left @ k).double() @ wanted / (wanted @ wanted))


def _leading(matrix: Tensor) -> Tensor:
    """The leading right singular vector (d_in,), by power iteration from the longest row."""
    k = matrix[matrix.norm(dim=1).argmax()]
    for _ in range(ROUNDS):
        k = matrix.T @ (matrix @ (k / k.norm()))
    return k / k.norm()
