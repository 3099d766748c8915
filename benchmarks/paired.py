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
    from collections.abc import Callable, Mapping

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


def own_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of *work* in this process, which other processes hardly change.

    With an accelerator, the seconds on the clock.
    """
    if torch.cuda.is_available():
        return seconds(work)
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(
    plain: Callable[[], Any], ours: Callable[[], Any], pairs: int, *, count: bool = True
) -> dict[str, Any]:
    """Times in turns (median of the pairs' ratios), and operations of both unless not *count*."""
    return Measured({"plain": plain, "ours": ours}, pairs, count=count).row("plain", "ours")


class Measured:
    """Several ways to do one thing: times in turns, and before them the operations of each."""

    def __init__(
        self, ways: Mapping[str, Callable[[], Any]], pairs: int, *, count: bool = True
    ) -> None:
        """Without *count* no operations are counted, so each way runs once less."""
        self.counted = {name: flops_and_peak(work) for name, work in ways.items() if count}
        self.times = [{n: own_seconds(work) for n, work in ways.items()} for _ in range(pairs)]

    def row(self, plain: str, ours: str) -> dict[str, Any]:
        """The way *ours* against *plain*; the ratio is the median of the pairs' ratios."""
        row: dict[str, Any] = {
            "plain_seconds": statistics.median(each[plain] for each in self.times),
            "our_seconds": statistics.median(each[ours] for each in self.times),
            "times_faster": statistics.median(each[plain] / each[ours] for each in self.times),
            "pairs": len(self.times),
        }
        if self.counted:
            (flops_a, peak_a), (flops_b, peak_b) = self.counted[plain], self.counted[ours]
            row |= {"plain_gflop": flops_a / 1e9, "our_gflop": flops_b / 1e9}
            row |= {"times_fewer_flops": flops_a / flops_b}
            row |= {"plain_peak_mebibytes": peak_a, "our_peak_mebibytes": peak_b}
        return row


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
