"""Run a model again from one layer and one position on; keep the rest (`passes`)."""

from lmedit.replay.passes import (
    Entering,
    Kept,
    Prefixed,
    adds_straight,
    enter,
    keep,
    resume,
)
from lmedit.replay.ways import Ways, ways_of

__all__ = [
    "Entering",
    "Kept",
    "Prefixed",
    "Ways",
    "adds_straight",
    "enter",
    "keep",
    "resume",
    "ways_of",
]
