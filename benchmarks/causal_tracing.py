"""Causal tracing of one fact: staircase passes against a whole run for every restored state.

    python benchmarks/causal_tracing.py

Both trace single states at every token from the subject on, in every layer, with ten noise samples.
Prints a row for each shape and writes `benchmarks/results/causal_tracing.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from paired import SMALL, compare, report, with_words

from lmedit import load_lm
from lmedit_rome.restoring import STATE, TraceSettings
from lmedit_rome.tracing import trace

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "rome" / "tests"))
from test_tracing import FACT, Plain, expected


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    flags = parser.parse_args()
    demo, rows = load_lm("demo"), []
    for lm in (demo, with_words(SMALL)):
        setup = TraceSettings(noise=0.1, samples=10)

        def ours(lm: object = lm, setup: TraceSettings = setup) -> torch.Tensor:
            return trace(lm, FACT, setup, kinds=[STATE]).scores[STATE]  # type: ignore[arg-type]

        @torch.no_grad()
        def theirs(lm: object = lm, setup: TraceSettings = setup) -> torch.Tensor:
            plain = Plain(lm, setup)  # type: ignore[arg-type]
            tokens = range(plain.start, len(plain.ids))
            return torch.tensor(
                [[expected(plain, STATE, b, t) for b in range(plain.lm.n_layers)] for t in tokens]
            )

        found = theirs()
        error = float((ours()[-len(found) :] - found).abs().max())
        row = compare(theirs, ours, flags.pairs if lm is demo else 1)
        rows.append(
            {
                "shape": lm.name,
                "tokens": len(lm.encode(FACT.text)),
                **row,
                "largest_difference": error,
            }
        )
    report("causal_tracing", rows)


if __name__ == "__main__":
    main()
