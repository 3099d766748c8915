"""KN's attributions of all layers: one staircase pass against a whole-prompt pass per layer.

    python benchmarks/kn_staircase.py

Prints a row for each length of the prompt and writes `benchmarks/results/kn_staircase.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, XL, compared, gpt2, report

from lmedit import build_options, load
from lmedit_kn.equations import path
from lmedit_kn.staircase import attributions

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "kn" / "tests"))
import plain

if TYPE_CHECKING:
    from lmedit import Lm


def measured(lm: Lm, options: Any, length: int, pairs: int) -> dict[str, Any]:
    """One row: a prompt of *length* tokens both ways."""
    ids = torch.arange(100, 100 + length).tolist()
    points = path(options.rule, options.steps).tolist()
    found: dict[str, torch.Tensor] = {}

    def ours() -> None:
        found["ours"] = attributions(lm, ids, 7, options).scores

    def theirs() -> None:
        found["plain"] = plain.attributions(lm, ids, 7, points, options.site)

    row = compared(theirs, ours, pairs)
    error = (found["ours"] - found["plain"]).abs().max() / found["plain"].abs().max()
    return {
        "shape": lm.name, "prompt_tokens": length, "steps": options.steps, **row,
        "largest_relative_difference": float(error),
    }  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    lm = gpt2(XL if flags.xl else SMALL, flags.device)
    options = build_options(load("kn").method, {"rows": 256})
    rows = [measured(lm, options, length, flags.pairs) for length in flags.lengths]
    report("kn_staircase" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
