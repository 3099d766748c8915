"""Memory: what is free, what a piece of work takes, and work in parts that fit into it."""

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
"""What allocators of devices without an error class of their own say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether *error* says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error).lower() for c in COMPLAINTS)


def in_parts(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: int
) -> Iterator[Result]:
    """What *work* makes of *items*, at most *size* at once, and half as many where memory ends.

    A size that did not fit is not tried again. Raises the allocator's error where one item alone
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
    """Something that can be built in any number of pieces: of twice as many where memory ends."""

    def __init__(self, build: Callable[[int], Thing], most: int) -> None:
        """``build(pieces)`` makes it, of *most* pieces at the most; first of one."""
        self.build, self.most, self.pieces = build, most, 1
        self.thing: Thing | None = None

    def do(self, work: Callable[[Thing], Result]) -> Result:
        """What *work* gives; it is done anew in smaller pieces where it did not fit.

        Raises the allocator's error where the smallest pieces do not fit.
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
    """Bytes in use: of the device's allocator on CUDA, of the process on Linux; None: unknown."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return from_proc(Path("/proc/self/status"), "VmRSS:") if device.type == "cpu" else None


def free(device: torch.device) -> float | None:
    """Bytes that are free on *device*; None where the system cannot tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return from_proc(Path("/proc/meminfo"), "MemAvailable:") if device.type == "cpu" else None


def from_proc(path: Path, key: str) -> float | None:
    """A size from one of Linux' files of lines such as ``VmRSS:  123 kB``."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(key)]
    return int(found[0]) * 1024.0 if found else None


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
