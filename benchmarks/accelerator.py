"""One run of at most twelve minutes for an accelerator: seconds of edits on real shapes.

    python benchmarks/accelerator.py --device cuda

GPT-2 XL's shape and Llama-3-8B's with random weights, and the real model if it is here. For each a
ROME, KN, MEND and KE edit, and a MEMIT edit of 100 facts: first eagerly, then with blocks compiled
by `torch.compile`, then compiled with CUDA graphs. Each row has the seconds that the MEND and ROME
papers tell, where they tell some. A row without `seconds` tells why: an error, or no time left.
Writes `benchmarks/results/accelerator.json` after each row, so an ended run loses nothing.
"""

from __future__ import annotations

import argparse
import gc
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from edit_seconds import work_of
from paired import XL, report, seconds, with_words
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lmedit import Lm, Request, build_options, load, load_lm
from lmedit.cases import corpus_of
from lmedit.pipeline import prepare
from lmedit_demo import WORLD
from lmedit_memit.remembering import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}
"""Llama-3-8B's shape (its config.json)."""
MODES = {"eager": None, "compiled": "default", "graphs": "reduce-overhead"}
"""The modes of `torch.compile`; the last captures CUDA graphs."""
METHODS = ("rome", "kn", "mend", "ke", "memit")
PAPER = {"rome": 2.0, "mend": 0.1, "ke": 0.1}
"""Seconds of an edit: ROME's paper tells about two, MEND's paper a tenth, on their accelerators."""


def llama(shape: dict[str, Any], device: str) -> Lm:
    """Llama's architecture with random weights in bfloat16, and the embedded model's tokens."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(WORLD.model)
    return Lm(model.requires_grad_(False), tokenizer, name="llama-shaped")


def facts(count: int) -> list[Request]:
    """So many facts of a usual length."""
    return [
        Request(prompt="{} is in the city of", subject=f"The old tower {n}", target_new="Rome")
        for n in range(count)
    ]


def edit_of(lm: Lm, method: str, count: int, samples: int) -> Callable[[], Any]:
    """One edit by *method*, ready to run; MEMIT's has *count* facts, and counts *samples* lines."""
    if method != "memit":
        return work_of(lm, method)
    loaded = load(method)
    given = {"samples": samples, "tolerance": None, "damping": 1e-5}  # for few keys
    options: Any = build_options(loaded.method, given, lm)
    editor = prepare(loaded, lm, options, corpus_of(None, WORLD.text))

    def edit() -> Any:
        forget(lm)  # or the second edit would find its targets
        return editor.compute_joint(facts(count))

    return edit


@contextmanager
def compiled(lm: Lm, mode: str | None) -> Iterator[None]:
    """Run the blocks of *lm* compiled in this *mode*; None: eagerly."""
    blocks = [lm.block(layer) for layer in range(lm.n_layers)] if mode else []
    for block in blocks:
        block.compile(mode=mode)
    try:
        # lmedit's hooks come and go, so compiled code must look for them
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        if blocks:
            torch.compiler.reset()


@contextmanager
def ends_after(left: float) -> Iterator[None]:
    """Raise `TimeoutError` in this block after *left* seconds."""

    def end(*_: object) -> None:
        raise TimeoutError("no time left")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(lm: Lm, method: str, mode: str, count: int, samples: int) -> dict[str, Any]:
    """Seconds of the second edit; the first compiles, and fills what is kept."""
    work = edit_of(lm, method, count, samples)
    with compiled(lm, MODES[mode]):
        first = seconds(work)
        return {"seconds": seconds(work), "first_seconds": first}


def rows_of(
    models: dict[str, Callable[[], Lm]], flags: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each model, mode and method. What does not work has the reason."""
    deadline = time.monotonic() + flags.minutes * 60
    for shape, make in models.items():
        lm: Lm | None = None
        for mode in flags.modes:
            for method in flags.methods:
                row: dict[str, Any] = {"shape": shape, "mode": mode, "method": method}
                if method == "memit":
                    row["facts"] = flags.facts
                try:
                    with ends_after(deadline - time.monotonic()):
                        lm = lm or make()
                        row |= measure(lm, method, mode, flags.facts, flags.samples)
                except Exception as error:  # noqa: BLE001  (the row tells it)
                    lines = str(error).splitlines() or [""]
                    row["why"] = f"{type(error).__name__}: {lines[0][:200]}"
                yield row | ({"paper_seconds": PAPER[method]} if method in PAPER else {})
        del lm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=11.0, help="rows after that are left out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--facts", type=int, default=100, help="of a MEMIT edit")
    parser.add_argument("--samples", type=int, default=200, help="documents of MEMIT's statistics")
    parser.add_argument("--model", default="smollm2", help="the real model")
    flags = parser.parse_args()
    models = {
        "gpt2-xl-shaped": lambda: with_words(XL, flags.device),
        flags.model: lambda: load_lm(flags.model, device=flags.device),
        "llama-3-8b-shaped": lambda: llama(LLAMA, flags.device),
    }
    rows: list[dict[str, Any]] = []
    for row in rows_of(models, flags):
        rows.append(row)
        report("accelerator", rows)


if __name__ == "__main__":
    main()
