"""The joint change of one matrix: the equations with the method's statistics and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from lmedit import Dense, LowRank
from lmedit.errors import RequestError
from lmedit.memory import in_parts
from lmedit.stats import name_of
from lmedit_memit.equations import (
    combination,
    combine_columns,
    nearness,
    project,
    unwhiten,
    whiten,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit import Delta, Prepared
    from lmedit.stats import Place

SINGULAR = 1e12
"""Above this condition number two keys count as equal."""


@dataclass(frozen=True)
class Metric:
    """How a method measures keys: ``half``, its transpose ``back``, and kappa."""

    half: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    kappa: float
    size: int
    """D', the number of directions that may change."""

    @classmethod
    def of_factor(cls, L: Tensor, kappa: float) -> Metric:
        """C^-1 from the Cholesky factor L (D, D) of C."""
        return cls(lambda S: whiten(S, L), lambda Y: unwhiten(Y, L), kappa, len(L))

    @classmethod
    def of_projector(cls, V: Tensor, kappa: float, *, complement: bool) -> Metric:
        """The projector onto the columns of V (D, d), or onto the rest (*complement*)."""

        def half(S: Tensor) -> Tensor:
            return project(S, V, complement=complement)

        free = len(V) - V.shape[1] if complement else V.shape[1]
        return cls(half, half, kappa, free)

    @classmethod
    def of_directions(cls, U: Tensor, values: Tensor, weight: float, ridge: float) -> Metric:
        """(weight C + ridge I)^-1 within the eigenvectors U (D, d) of C; kappa is 1 (BetaEdit)."""
        scale = (weight * values + ridge).rsqrt()[:, None]
        return cls(lambda S: scale * (U.T @ S), lambda Y: U @ (scale * Y), 1.0, U.shape[1])

    @classmethod
    def of_subspace(cls, U: Tensor, C: Tensor, weight: float, ridge: float) -> Metric:
        """The same within any orthonormal columns U (D, d); C is (D, D)."""
        A = weight * U.T @ C @ U
        A.diagonal().add_(ridge)
        L = torch.linalg.cholesky(A)
        return cls(lambda S: whiten(U.T @ S, L), lambda Y: U @ unwhiten(Y, L), 1.0, U.shape[1])

    @classmethod
    def of_parts(cls, parts: Sequence[Metric], widths: Sequence[int]) -> Metric:
        """One metric of stacked keys: the first part measures their first ``widths[0]`` rows.

        Of experts, a value is the sum of all W_e k_e, so their keys are one long key.
        """
        kappa = parts[0].kappa
        scales = [(kappa / part.kappa) ** 0.5 if part.kappa else 1.0 for part in parts]
        sizes: list[int] = []

        def half(S: Tensor) -> Tensor:
            rows = zip(parts, scales, torch.split(S, list(widths)), strict=True)
            found = [scale * part.half(each) for part, scale, each in rows]
            sizes[:] = [len(each) for each in found]
            return torch.cat(found)

        def back(Y: Tensor) -> Tensor:
            rows = zip(parts, scales, torch.split(Y, sizes), strict=True)
            return torch.cat([scale * part.back(each) for part, scale, each in rows])

        return cls(half, back, kappa, sum(part.size for part in parts))


def damped_metric(prepared: Prepared, kappa: float) -> Callable[[Place, torch.device], Metric]:
    """The metric by layer and device, from the stored Cholesky factors of C (MEMIT, EMMET)."""

    def metric_of(place: Place, device: torch.device) -> Metric:
        return Metric.of_factor(prepared.tensors[f"cholesky.{name_of(place)}"].to(device), kappa)

    return metric_of


def find_known(prepared: Prepared, tensor: str) -> Callable[[Place], bool]:
    """Whether the preparation has *tensor* of a place: an expert with too few keys has none."""
    return lambda place: f"{tensor}.{name_of(place)}" in prepared.tensors


def joint_keys(
    metric: Metric, K: Tensor, B: Tensor | None = None, *, primal: bool | None = None
) -> Tensor:
    """X (D, n) of the change ``R X^T`` for the keys K (D, n), in float64.

    B (D, t) are remembered keys, whose values stay. *primal* chooses between two equal forms; by
    default the smaller one is solved, if there are fewer than D / 4 keys.
    """
    n, t = K.shape[1], 0 if B is None else B.shape[1]
    if primal is None:
        primal = metric.kappa > 0 and n + t >= len(K) / 4
    if primal:
        return _primal_keys(metric, K, B)
    S = K.double() if B is None else torch.cat([B.double(), K.double()], 1)
    return metric.back(combination(metric.half(S), n, metric.kappa))


def _primal_keys(metric: Metric, K: Tensor, B: Tensor | None) -> Tensor:
    """As `joint_keys`, from D' equations. If memory is full, the columns are worked in parts."""

    def half(S: Tensor, columns: Sequence[int]) -> Tensor:
        return metric.half(S[:, columns[0] : columns[-1] + 1].double())

    def outer(S: Tensor, columns: Sequence[int]) -> Tensor:
        T = half(S, columns)
        return T @ T.T

    A: Tensor | None = None
    for S in [K] if B is None else [B, K]:
        for part in in_parts(partial(outer, S), range(S.shape[1]), S.shape[1]):
            A = part if A is None else A.add_(part)
    assert A is not None
    A.diagonal().add_(metric.kappa)
    L = torch.linalg.cholesky(A)
    del A, part
    X = torch.empty(K.shape, dtype=torch.float64, device=K.device)

    def solve(columns: Sequence[int]) -> None:
        found = combine_columns(half(K, columns), L)
        X[:, columns[0] : columns[-1] + 1] = metric.back(found)

    for _ in in_parts(solve, range(K.shape[1]), K.shape[1]):
        pass
    return X


def check_independent(metric: Metric, K: Tensor, B: Tensor | None, names: Sequence[str]) -> None:
    """Raise `RequestError` if an exact solution does not exist; it names two near keys.

    *names* are those of the columns of K. Remembered keys have no name.
    """
    S = K.double() if B is None else torch.cat([B.double(), K.double()], 1)
    if S.shape[1] > metric.size:
        raise too_many(S.shape[1], metric.size)
    T = metric.half(S)
    T = T / T.norm(dim=0)
    if float(torch.linalg.cond(T.T @ T)) <= SINGULAR:
        return
    every = [*(["an earlier edit"] * (S.shape[1] - K.shape[1])), *names]
    first, second = divmod(int(nearness(T).argmax()), S.shape[1])
    raise equal_keys(every[first], every[second])


def too_many(count: int, size: int) -> RequestError:
    """The error of *count* exact answers with *size* dimensions."""
    return RequestError(
        f"emmet: {count} exact answers need as many dimensions, and the matrix has {size}; edit "
        "fewer facts, or use memit"
    )


def equal_keys(one: str, other: str) -> RequestError:
    """The error of two facts with the same key."""
    return RequestError(
        f"emmet: {one!r} and {other!r} have the same key, so both answers cannot hold exactly; "
        "remove one, or give -o softness 0.1, or use memit"
    )


def change_of(R: Tensor, X: Tensor, dtype: torch.dtype) -> Delta:
    """``R X^T`` as factors (H, n) and (n, D), or as a matrix (H, D) where that is smaller."""
    (H, n), D = R.shape, len(X)
    if n * (H + D) <= H * D:
        return LowRank(R.to(dtype), X.T.contiguous().to(dtype))
    return Dense((R @ X.T).to(dtype))
