"""C^-1 k from a second moment: its Cholesky factor, its condition number, its convergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

PROBES = 32
"""How many keys are watched; they are taken from the start of the corpus, one in STRIDE."""
STRIDE = 16
ROUNDS = 100
"""Iterations of the power iteration for a condition number."""


def cholesky(C: Tensor, ridge: float = 0.0) -> Tensor:
    """L with L L^T = C + ridge tr(C)/D I, in float64.

    Raises `torch.linalg.LinAlgError` if this matrix is not positive definite.
    """
    C = C.double()
    level = ridge * C.diagonal().mean()
    return torch.linalg.cholesky(C + level * torch.eye(len(C), dtype=C.dtype, device=C.device))


def positive_factor(S: Tensor, count: int) -> Tensor | None:
    """The Cholesky factor of C = S / *count* in float64; None if C is not positive definite."""
    try:
        return cholesky(S / max(1, count))
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        if is_out_of_memory(error):
            raise
        return None


def condition(L: Tensor) -> float:
    """Largest / smallest eigenvalue of L L^T, by power iteration; never above the true value."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(L), 1, generator=generator, dtype=torch.float64).to(L)

    def largest(x: Tensor, *, inverse: bool) -> float:
        norm = x.norm()
        for _ in range(ROUNDS):
            x = x / norm
            x = torch.cholesky_solve(x, L) if inverse else L @ (L.T @ x)
            norm = x.norm()
        return float(norm)

    return max(1.0, largest(start, inverse=False) * largest(start, inverse=True))


@dataclass(frozen=True)
class Convergence:
    """How much C^-1 k changed from half of *tokens* to *tokens*; means over the keys."""

    tokens: int
    angle: float
    """The angle between the two solutions in radians."""
    length: float
    """|log of the ratio of their lengths|."""

    def is_within(self, tolerance: float) -> bool:
        """Whether neither angle nor length is larger."""
        return max(self.angle, self.length) <= tolerance


class Watch:
    """Watch C^-1 k of a few keys while C is summed.

    The first half of a sample is part of the whole. So the difference of their solutions is about
    as large as the distance from the whole to the limit (both have variance 1/n).
    """

    def __init__(self, tolerance: float | None) -> None:
        """*tolerance* bounds both the angle and the length; None: watch nothing."""
        self.tolerance = tolerance
        self.probes: Tensor | None = None
        self.solution: Tensor | None = None
        self.seen: list[Convergence] = []
        self.next = 0

    def look(self, keys: Tensor) -> None:
        """Take some of *keys* (n, D) as probes, until there are enough or they are in use."""
        enough = self.probes is not None and len(self.probes) >= PROBES
        if self.tolerance is None or enough or self.solution is not None:
            return
        new = keys[::STRIDE].double().cpu()
        if self.probes is not None:
            new = torch.cat([self.probes, new])
        self.probes = new[:PROBES].clone()

    def settled(self, S: Tensor, count: int) -> bool:
        """Whether the last change was within the tolerance; solve again if *count* has doubled."""
        if self.tolerance is None or self.probes is None:
            return False
        if count >= max(self.next, 2 * len(S)) and (L := positive_factor(S, count)) is not None:
            self.next = 2 * count
            solution = torch.cholesky_solve(self.probes.T, L).T  # (K, D)
            if self.solution is not None:
                self.seen.append(_convergence_of(solution, self.solution, count))
            self.solution = solution
        last = self.seen[-1] if self.seen else None
        return last is not None and last.is_within(self.tolerance)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors for a checkpoint."""
        kept = {"probes": self.probes, "solution": self.solution}
        found = {f"{part}.{name}": t for part, t in kept.items() if t is not None}
        return {**found, f"next.{name}": torch.tensor(self.next)}

    def restore(
        self, tensors: Mapping[str, Tensor], seen: Sequence[Mapping[str, float]], name: str
    ) -> None:
        """Restore the result of `tensors`, and the convergence *seen* so far."""
        self.probes, self.solution = (tensors.get(f"{p}.{name}") for p in ("probes", "solution"))
        self.next = int(tensors[f"next.{name}"])
        self.seen = [Convergence(int(e["tokens"]), e["angle"], e["length"]) for e in seen]


def _convergence_of(new: Tensor, old: Tensor, tokens: int) -> Convergence:
    cosine = torch.nn.functional.cosine_similarity(new, old).clamp(-1, 1)
    length = (new.norm(dim=1) / old.norm(dim=1)).log().abs()
    return Convergence(tokens, float(cosine.arccos().mean()), float(length.mean()))
