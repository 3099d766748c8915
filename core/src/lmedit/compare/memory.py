"""The most memory that a piece of work takes, where the system can tell."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmedit.planning import from_proc

if TYPE_CHECKING:
    from collections.abc import Iterator

PROCESS = Path("/proc/self")
MEBIBYTE = 1024**2


@dataclass
class Peak:
    """The most memory in use at once, in MiB, what was there before included; None: unknown."""

    mebibytes: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block: the device's allocator on CUDA, the process' resident memory on Linux."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.mebibytes = torch.cuda.max_memory_allocated(device) / MEBIBYTE
        return
    known = device.type == "cpu" and _reset()
    yield peak
    if known:
        peak.mebibytes = _highest()


def _reset() -> bool:
    """Let the kernel count the highest resident size anew; False where it cannot."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _highest() -> float | None:
    """The kernel's count, `VmHWM`, in MiB."""
    size = from_proc(PROCESS / "status", "VmHWM:")
    return None if size is None else size / MEBIBYTE
