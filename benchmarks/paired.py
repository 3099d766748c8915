"""Two ways to do one thing, in one run: paired times, floating-point operations, equal results."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lmedit import Lm
from lmedit.memory import peak_memory
from lmedit.storage.json_files import write_json
from lmedit.tiny import byte_tokenizer
from lmedit_demo import WORLD

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
SMALL = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
XL = {"n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257}


def gpt2(shape: dict[str, int], device: str = "cpu") -> Lm:
    """GPT-2 of a published shape with random weights, in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT2LMHeadModel(GPT2Config(**shape))
    return Lm(model.requires_grad_(False), byte_tokenizer(), name="gpt2-shaped")


def with_words(shape: dict[str, int], device: str = "cpu") -> Lm:
    """The same with the embedded model's tokens: words, not bytes; its weights are random."""
    lm = gpt2(shape, device)
    lm.tokenizer = AutoTokenizer.from_pretrained(WORLD.model)
    return lm


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of *work*, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def flops_and_peak(work: Callable[[], Any]) -> tuple[int, float | None]:
    """Operations of *work*, and the most memory in MiB, the model's included (None: unknown)."""
    gc.collect()
    with peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu")) as peak:
        counted = flops(work)
    return counted, peak.mebibytes


def seconds(work: Callable[[], Any]) -> float:
    """How long *work* takes, the accelerator's queue included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(plain: Callable[[], Any], ours: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """Times in turns (median of the pairs' ratios) and operations of both."""
    our_flops, our_peak = flops_and_peak(ours)
    plain_flops, plain_peak = flops_and_peak(plain)
    times = [(seconds(plain), seconds(ours)) for _ in range(pairs)]
    return {
        "plain_seconds": statistics.median(a for a, _ in times),
        "our_seconds": statistics.median(b for _, b in times),
        "times_faster": statistics.median(a / b for a, b in times),
        "plain_gflop": plain_flops / 1e9,
        "our_gflop": our_flops / 1e9,
        "times_fewer_flops": plain_flops / our_flops,
        "plain_peak_mebibytes": plain_peak,
        "our_peak_mebibytes": our_peak,
        "pairs": pairs,
    }


def machine() -> dict[str, Any]:
    """Where it ran."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows and write them to `results/NAME.json`."""
    for row in rows:
        print(
            "  ".join(
                f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
            )
        )
    write_json(RESULTS / f"{name}.json", {"machine": machine(), "rows": rows})
