"""What work will take, before anything is loaded: bytes by purpose, and operations.

Sizes of matrices are exact; what a forward pass holds is an estimate from the widths of the model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.registry import LoadedMethod
    from lmedit.types import Options, Work

STREAM, INNER = 12, 6
"""Numbers of the width of the stream, and of the keys, that a block keeps for each token."""
PROMPT = 24
"""Tokens of a prompt with its context and answer that are reckoned with."""
AFTER = 10
"""Those of them from the subject's last token on."""
ACHIEVED = 1 / 3
"""Share of the speed of large matrices that small work reaches."""
PROBE, PROBES = 1024, 5
CLASSES = ((60, "seconds"), (3600, "minutes"), (86400, "hours"), (float("inf"), "days"))


def kept_for_gradient(lm: Lm, tokens: float, blocks: float) -> float:
    """Bytes that *blocks* blocks keep of *tokens* tokens for a backward pass."""
    each = STREAM * lm.hidden_size + INNER * _inner(lm)
    return tokens * blocks * each * _itemsize(lm)


def in_passing(lm: Lm, tokens: float) -> float:
    """Bytes that a forward pass over *tokens* tokens holds at once, gradients aside."""
    return kept_for_gradient(lm, tokens, 1)


def logits(lm: Lm, places: float) -> float:
    """Bytes of logits at *places*, their float32 log-probabilities and gradient."""
    return places * _vocabulary(lm) * (_itemsize(lm) + 3 * 4)


def block_flops(lm: Lm, tokens: float, blocks: float) -> float:
    """Operations of a forward pass of *tokens* tokens through *blocks* blocks."""
    return 2 * tokens * blocks * sum(p.numel() for p in lm.block(0).parameters())


def head_flops(lm: Lm, places: float) -> float:
    """Operations of the head at *places*."""
    return 2 * places * _vocabulary(lm) * lm.hidden_size


def weights(lm: Lm) -> int:
    """Bytes of the model's parameters and buffers."""
    tensors = [*lm.model.parameters(), *lm.model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _inner(lm: Lm) -> int:
    return int(lm.weight(lm.mlp_out(0)).shape[1])


def _vocabulary(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.shape[0])


def _itemsize(lm: Lm) -> int:
    return int(lm.model.get_input_embeddings().weight.element_size())


def work_of(
    loaded: LoadedMethod, lm: Lm, options: Options, requests: int = 1
) -> Mapping[str, Work]:
    """What `prepare` and an `edit` of *requests* requests take; empty where the method is silent.

    *lm* may be an outline without weights.
    """
    found = loaded.manager.hook.edit_plan(lm=lm, options=options, requests=requests)
    return found if isinstance(found, Mapping) else {}


def predicted(editor: Editor, requests: int) -> float | None:
    """Peak MiB of computing *requests* edits now: what is held already and what comes on top."""
    work = work_of(editor.loaded, editor.lm, editor.options, requests).get("edit")
    held = in_use(editor.lm.device)
    if work is None or held is None:
        return None
    return (held + sum(work.memory.values())) / 2**20


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


def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of large matrix products, measured now."""
    a = torch.randn(PROBE, PROBE, device=device).to(dtype)

    def seconds() -> float:
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        return time.perf_counter() - started

    return 2 * PROBE**3 / min(seconds() for _ in range(PROBES))


@dataclass(frozen=True)
class Plan:
    """What a method takes on a model, a device and a number type, and what there is."""

    work: Mapping[str, Work]
    fixed: Mapping[str, float]
    """Bytes that are there all the time: the weights, the libraries."""
    free: float | None
    speed: float

    def total(self, part: str) -> float:
        """Bytes of a part at its peak."""
        return sum(self.fixed.values()) + sum(self.work[part].memory.values())

    def seconds(self, part: str) -> float:
        """A rough time."""
        return self.work[part].flops / (ACHIEVED * self.speed)

    def time_class(self, part: str) -> str:
        """Seconds, minutes, hours or days."""
        return next(name for limit, name in CLASSES if self.seconds(part) < limit)

    @property
    def fits(self) -> bool | None:
        """Whether every part fits into what is free; None: unknown."""
        if self.free is None:
            return None
        return max((self.total(part) for part in self.work), default=0.0) <= self.free

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; memory in bytes."""
        return {
            "fixed": dict(self.fixed), "free": self.free, "fits": self.fits,
            "flops_per_second": self.speed,
            "parts": {
                name: {
                    "memory": dict(work.memory), "total": self.total(name), "flops": work.flops,
                    "time": self.time_class(name),
                }
                for name, work in self.work.items()
            },
        }  # fmt: skip


def plan(loaded: LoadedMethod, lm: Lm, options: Options, device: torch.device) -> Plan:
    """The plan for an outline *lm* that is to run on *device*."""
    fixed = {"weights": float(weights(lm))}
    if device.type == "cpu" and (libraries := in_use(device)) is not None:
        fixed["Python and libraries"] = libraries
    dtype = lm.model.get_input_embeddings().weight.dtype
    there = free(device)
    if there is not None:
        there += fixed.get("Python and libraries", 0.0)  # of this process, so taken already
    return Plan(work_of(loaded, lm, options), fixed, there, speed(device, dtype))
