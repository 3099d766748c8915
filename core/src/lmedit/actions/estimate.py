"""Estimate what a method needs on a model before loading it: memory, operations, rough time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from lmedit.actions.damage import LINES
from lmedit.memory import free, in_use
from lmedit.pipeline import work_of
from lmedit.planning import PROMPT, logits, weights
from lmedit.types import Work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod

ACHIEVED = 1 / 3
"""The share of the speed of large matrix products that the work of a method reaches."""
PROBE, PROBES = 1024, 5
CLASSES = ((60, "seconds"), (3600, "minutes"), (86400, "hours"), (float("inf"), "days"))


@cache
def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of large matrix products, measured once in a process."""
    a = torch.ones(PROBE, PROBE, device=device, dtype=dtype)  # no random number is drawn

    def seconds() -> float:
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        return time.perf_counter() - started

    return 2 * PROBE**3 / min(seconds() for _ in range(PROBES))


@dataclass(frozen=True)
class Estimate:
    """The needs of a method on a model, a device and a dtype, and the free memory."""

    work: Mapping[str, Work]
    fixed: Mapping[str, float]
    """Bytes that are always in use: the weights, the libraries."""
    free: float | None
    speed: float

    def total(self, part: str) -> float:
        """The peak in bytes of a step."""
        return sum(self.fixed.values()) + sum(self.work[part].memory.values())

    def seconds(self, part: str) -> float:
        """A rough time of a step."""
        return self.work[part].flops / (ACHIEVED * self.speed)

    def time_class(self, part: str) -> str:
        """The rough time in words: seconds, minutes, hours or days."""
        return next(name for limit, name in CLASSES if self.seconds(part) < limit)

    @property
    def fits(self) -> bool | None:
        """Whether every step fits into the free memory; None if that is unknown."""
        if self.free is None:
            return None
        return max((self.total(part) for part in self.work), default=0.0) <= self.free

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; memory in bytes."""
        return {
            "fixed": dict(self.fixed),
            "free": self.free,
            "fits": self.fits,
            "flops_per_second": self.speed,
            "parts": {
                name: {
                    "memory": dict(work.memory),
                    "total": self.total(name),
                    "flops": work.flops,
                    "time": self.time_class(name),
                }
                for name, work in self.work.items()
            },
        }


def estimate(loaded: LoadedMethod, lm: Lm, options: Options, device: torch.device) -> Estimate:
    """Estimate what *loaded* needs on *device* for the outline *lm*."""
    fixed = {"weights": float(weights(lm))}
    if device.type == "cpu" and (libraries := in_use(device)) is not None:
        fixed["Python and libraries"] = libraries
    dtype = lm.model.get_input_embeddings().weight.dtype
    there = free(device)
    if there is not None:
        there += fixed.get("Python and libraries", 0.0)  # this process already uses them
    work = dict(work_of(loaded, lm, options))
    if (edit := work.get("edit")) is not None:
        # The command reads held-out lines before and after the edit (`sample_held_out`).
        read = {"logits of held-out lines": logits(lm, LINES * PROMPT)}
        work["edit"] = Work({**edit.memory, **read}, edit.flops)
    return Estimate(work, fixed, there, speed(device, dtype))
