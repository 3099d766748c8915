"""One measure of a comparison, and the protocols that several measures share."""

from __future__ import annotations

from dataclasses import dataclass

FORCED = "teacher-forced"
CONTRAST = "teacher-forced probability contrast, length-normalised"


@dataclass(frozen=True)
class Measure:
    """One number of a case or a row.

    `scale` converts the stored value to the shown value (100: a share in percent); `digits` are its
    decimal places. `group` is its name for `--metrics`; empty means that it is always measured.
    """

    name: str
    label: str
    meaning: str
    protocol: str = ""
    group: str = ""
    scale: float = 100.0
    digits: int = 1
    less_is_better: bool = False
    of_case: bool = True
