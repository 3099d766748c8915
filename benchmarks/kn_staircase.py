"""KN's attributions of all layers: one staircase pass against a whole-prompt pass per layer.

    python benchmarks/kn_staircase.py

Prints a row for each length of the prompt and writes `benchmarks/results/kn_staircase.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from paired import SMALL, XL, compared, gpt2, report

from lmedit import build_options, load
from lmedit_kn.equations import path
from lmedit_kn.staircase import attributions

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "kn" / "tests"))
import plain


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 12, 16])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    lm = gpt2(XL if flags.xl else SMALL, flags.device)
    options = build_options(load("kn").method, {"rows": 256})
    points = path(options.rule, options.steps).tolist()
    rows = []
    for length in flags.lengths:
        ids = torch.arange(100, 100 + length).tolist()

        def ours(ids: list[int] = ids) -> torch.Tensor:
            return attributions(lm, ids, 7, options).scores

        def theirs(ids: list[int] = ids) -> torch.Tensor:
            return plain.attributions(lm, ids, 7, points, options.site)

        one, two = ours(), theirs()
        error = float((one - two).abs().max() / two.abs().max())
        rows.append(
            {
                "shape": "gpt2-xl" if flags.xl else "gpt2",
                "prompt_tokens": length,
                "steps": options.steps,
                **compared(theirs, ours, flags.pairs),
                "largest_relative_difference": error,
            }
        )
    report("kn_staircase" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
