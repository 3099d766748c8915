"""Causal tracing of one fact: staircase passes against a whole run for every restored state.

    python benchmarks/causal_tracing.py
    python benchmarks/causal_tracing.py --world smollm2 --samples 3 --pairs 1

Both trace single states at every token from the subject on, in every layer, with ten noise samples.
With `--world`, only a world's own model, on one thread. Prints a row for each shape and writes
`benchmarks/results/causal_tracing[_WORLD].json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, compare, report, with_words

from lmedit import load_lm
from lmedit_rome.restoring import STATE, TraceSettings
from lmedit_rome.tracing import trace

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "rome" / "tests"))
from test_tracing import FACT, Plain, expected

if TYPE_CHECKING:
    from lmedit import Lm


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--world", help="a world's own model, such as smollm2")
    flags = parser.parse_args()
    setup = TraceSettings(noise=0.1, samples=flags.samples)
    if flags.world:
        torch.set_num_threads(1)
        rows = [measure(load_lm(flags.world), setup, flags.pairs, count=False)]
    else:
        rows = [measure(load_lm("demo"), setup, flags.pairs), measure(with_words(SMALL), setup, 1)]
    report("causal_tracing" + (f"_{flags.world}" if flags.world else ""), rows)


def measure(lm: Lm, setup: TraceSettings, pairs: int, *, count: bool = True) -> dict[str, Any]:
    """The row of one model."""
    found: dict[str, torch.Tensor] = {}

    def ours() -> None:
        found["ours"] = trace(lm, FACT, setup, kinds=[STATE]).scores[STATE]

    @torch.no_grad()
    def theirs() -> None:
        plain = Plain(lm, setup)
        tokens = range(plain.start, len(plain.ids))
        found["plain"] = torch.tensor(
            [[expected(plain, STATE, b, t) for b in range(lm.n_layers)] for t in tokens]
        )

    ours()  # what is worked out once: short cuts, kernels
    row = compare(theirs, ours, pairs, count=count)
    differ = found["ours"][-len(found["plain"]) :] - found["plain"]
    told = {
        "shape": lm.name,
        "what": "single states",
        "tokens": len(lm.encode(FACT.text)),
        "samples": setup.samples,
    }
    return {**told, **row, "largest_difference": float(differ.abs().max())}


if __name__ == "__main__":
    main()
