"""Memory: how much is free, how much a block uses, and how to split work that does not fit."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")
Thing = TypeVar("Thing")

PROCESS = Path("/proc/self")
MEBIBYTE = 1024**2
COMPLAINTS = ("out of memory", "can't allocate memory", "not enough memory")
"""Error messages of device allocators that have no error class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether *error* means that the memory of a device is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error).lower() for c in COMPLAINTS)


def in_parts(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: int
) -> Iterator[Result]:
    """Call *work* on parts of *items*, at most *size* items each; halve a part that does not fit.

    A size that did not fit is not tried again. Raises the allocator's error if a single item
    does not fit.
    """
    start = 0
    while start < len(items):
        part = items[start : start + size]
        try:
            result = work(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            size = len(part) // 2
            continue
        yield result
        start += len(part)


class InPieces(Generic[Thing]):
    """An object that can be built in any number of pieces; the pieces double if memory is full."""

    def __init__(self, build: Callable[[int], Thing], most: int) -> None:
        """``build(pieces)`` makes the object. Start with one piece; *most* is the upper limit."""
        self.build, self.most, self.pieces = build, most, 1
        self.thing: Thing | None = None

    def do(self, work: Callable[[Thing], Result]) -> Result:
        """Return ``work(object)``. If it does not fit, build more and smaller pieces and repeat.

        Raises the allocator's error if the smallest pieces do not fit.
        """
        while True:
            try:
                if self.thing is None:
                    self.thing = self.build(self.pieces)
                return work(self.thing)
            except (RuntimeError, MemoryError) as error:
                if self.pieces >= self.most or not is_out_of_memory(error):
                    raise
            self.thing, self.pieces = None, min(2 * self.pieces, self.most)


def in_use(device: torch.device) -> float | None:
    """Bytes in use: by the CUDA allocator, or by the process on Linux. None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return from_proc(Path("/proc/self/status"), "VmRSS:") if device.type == "cpu" else None


def free(device: torch.device) -> float | None:
    """Bytes that are free on *device*; None if the system cannot tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return from_proc(Path("/proc/meminfo"), "MemAvailable:") if device.type == "cpu" else None


def from_proc(path: Path, key: str) -> float | None:
    """Read a size from a file of Linux with lines such as ``VmRSS:  123 kB``."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key)]
    return int(found[0]) * 1024.0 if found else None


@dataclass
class Peak:
    """The largest memory in use, in MiB, including the memory from before. None if unknown."""

    mebibytes: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block: the CUDA allocator, or the resident memory of the process on Linux."""
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
    """Reset the kernel's highest resident size; return False if that is not possible."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _highest() -> float | None:
    """The kernel's highest resident size, `VmHWM`, in MiB."""
    size = from_proc(PROCESS / "status", "VmHWM:")
    return None if size is None else size / MEBIBYTE
