"""CounterFact's scores as pure functions (Meng et al. 2022, section 3.3; Table 4).

A log-probability is the mean over the target's tokens of log P(token | all before), in nats,
teacher-forced. The released code compares these length-normalised values; the paper writes P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Contrast:
    """Mean log-probabilities of the new and the true answer after one prompt, in nats."""

    new: float
    true: float


def success(contrast: Contrast) -> float:
    """1 if the new answer is more probable than the true one, else 0 (a tie is 0): ES, PS."""
    return float(contrast.new > contrast.true)


def magnitude(contrast: Contrast) -> float:
    """P(new) - P(true), geometric means over tokens, in [-1, 1]: EM, PM."""
    return math.exp(contrast.new) - math.exp(contrast.true)


def specificity(contrast: Contrast) -> float:
    """1 if the true answer is more probable than the new one, else 0 (a tie is 0): NS."""
    return float(contrast.true > contrast.new)


def specificity_magnitude(contrast: Contrast) -> float:
    """P(true) - P(new), geometric means over tokens, in [-1, 1]: NM."""
    return -magnitude(contrast)


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return sum(values) / len(values) if values else None


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean: 1.96 std / sqrt(N), std with ddof 0."""
    average = mean(values)
    if average is None:
        return None
    variance = sum((value - average) ** 2 for value in values) / len(values)
    return 1.96 * math.sqrt(variance / len(values))


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """S: the harmonic mean of ES, PS and NS of the data set; None if one is None, 0 if one is 0."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if min(known) <= 0:
        return 0.0
    return len(known) / sum(1 / value for value in known)
