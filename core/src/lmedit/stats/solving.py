"""C^-1 k from a second moment: its factor, how badly it is conditioned, when it has settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

PROBES = 32
"""Keys whose solutions are watched: from the start of the corpus, one in STRIDE tokens."""
STRIDE = 16
ROUNDS = 100
"""Of the power iteration behind a condition number."""


def cholesky(C: Tensor, ridge: float = 0.0) -> Tensor:
    """L with L L^T = C + ridge tr(C)/D I, in float64.

    Raises `torch.linalg.LinAlgError` where that is not positive definite.
    """
    C = C.double()
    level = ridge * C.diagonal().mean()
    return torch.linalg.cholesky(C + level * torch.eye(len(C), dtype=C.dtype, device=C.device))


def positive_factor(S: Tensor, count: int) -> Tensor | None:
    """The factor of C = S / *count*, in float64; None where C is not positive definite."""
    try:
        return cholesky(S / max(1, count))
    except RuntimeError as error:  # torch.linalg.LinAlgError is one
        if is_out_of_memory(error):
            raise
        return None


def condition(L: Tensor) -> float:
    """Largest over smallest eigenvalue of L L^T, by power iteration (never above the true one)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(L), 1, generator=generator, dtype=torch.float64).to(L)

    def largest(x: Tensor, *, inverse: bool) -> float:
        norm = x.norm()
        for _ in range(ROUNDS):
            x = x / norm
            x = torch.cholesky_solve(x, L) if inverse else L @ (L.T @ x)
            norm = x.norm()
        return float(norm)

    return largest(start, inverse=False) * largest(start, inverse=True)


@dataclass(frozen=True)
class Convergence:
    """How the solutions C^-1 k at *tokens* differ from those at half as many; means over keys."""

    tokens: int
    angle: float
    """Radians between them."""
    length: float
    """|log of the ratio of their lengths|."""


class Watch:
    """Watches C^-1 k of a few keys while C is counted.

    A sample's first half lies in the whole: the difference between their solutions is about as
    large as what still separates the whole's from the limit (both have variance 1/n).
    """

    def __init__(self, tolerance: float | None) -> None:
        """*tolerance* bounds both the angle and the length; None: nothing is watched."""
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
        """Whether the last look was within the tolerance; looks again where *count* has doubled."""
        if self.tolerance is None or self.probes is None:
            return False
        if count >= max(self.next, 2 * len(S)) and (L := positive_factor(S, count)) is not None:
            self.next = 2 * count
            solution = torch.cholesky_solve(self.probes.T, L).T  # (K, D)
            if self.solution is not None:
                self.seen.append(_between(solution, self.solution, count))
            self.solution = solution
        last = self.seen[-1] if self.seen else None
        return last is not None and max(last.angle, last.length) <= self.tolerance

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        kept = {"probes": self.probes, "solution": self.solution}
        found = {f"{part}.{name}": t for part, t in kept.items() if t is not None}
        return {**found, f"next.{name}": torch.tensor(self.next)}

    def restore(
        self, tensors: Mapping[str, Tensor], seen: Sequence[Mapping[str, float]], name: str
    ) -> None:
        """Put back what `tensors` gave, and what was *seen*."""
        self.probes, self.solution = (tensors.get(f"{p}.{name}") for p in ("probes", "solution"))
        self.next = int(tensors[f"next.{name}"])
        self.seen = [Convergence(int(e["tokens"]), e["angle"], e["length"]) for e in seen]


def _between(new: Tensor, old: Tensor, tokens: int) -> Convergence:
    cosine = torch.nn.functional.cosine_similarity(new, old).clamp(-1, 1)
    length = (new.norm(dim=1) / old.norm(dim=1)).log().abs()
    return Convergence(tokens, float(cosine.arccos().mean()), float(length.mean()))
