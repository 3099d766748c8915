"""ROME's value optimisation: replay against whole passes over every context; requests at once.

    python benchmarks/rome_edit.py

GPT-2 small's shape with random weights, the released code's 21 contexts. Prints a row for one edit,
and one for each number of requests that are optimised together against one after the other;
writes `benchmarks/results/rome_edit.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, XL, compared, gpt2, report

from lmedit import Request, build_options, load, load_lm
from lmedit_rome.contexts import contexts
from lmedit_rome.rows import rows_of
from lmedit_rome.value import Value, optimise_values, select_keys

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "rome" / "tests"))
import plain

if TYPE_CHECKING:
    from lmedit import Lm

PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Paris", "Tokyo")


def requests(count: int) -> list[Request]:
    """Facts of a usual length."""
    return [
        Request(prompt="{} is in the city of", subject=f"The old tower {n}", target_new=place)
        for n, place in zip(range(count), PLACES * count, strict=False)
    ]


class Bench:
    """One model, its contexts and options."""

    def __init__(self, lm: Lm) -> None:
        given = {"layer": lm.n_layers // 3, "stop_loss": -1.0, "tolerance": None}
        options: Any = build_options(load("rome").method, given, lm)
        self.lm, self.options, self.layer = lm, options, options.layer
        self.templates = contexts(lm, options)

    def ours(self, together: list[Request]) -> list[Value]:
        """Optimised at once, only what delta can reach is run."""
        rows = [rows_of(self.lm, r, self.templates, self.options) for r in together]
        return optimise_values(self.lm, self.layer, rows, self.starts(together), self.options)

    def theirs(self, request: Request) -> torch.Tensor:
        """Whole passes."""
        (v_0,) = self.starts([request])
        return plain.value(self.lm, self.layer, request, self.templates, v_0, self.options)

    def starts(self, together: list[Request]) -> list[torch.Tensor]:
        """v_0 of each."""
        return [select_keys(self.lm, self.layer, r, self.templates).bare_out for r in together]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--together", type=int, nargs="*", default=[4])
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape instead of small's")
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    lm = gpt2(XL if flags.xl else SMALL, flags.device)
    lm.tokenizer = load_lm("demo").tokenizer  # words, not bytes; the weights are random anyway
    bench = Bench(lm)
    (one,) = requests(1)
    row = compared(lambda: bench.theirs(one), lambda: bench.ours([one]), flags.pairs)
    delta, expected = bench.ours([one])[0].delta, bench.theirs(one).double().cpu()
    cosine = float(torch.nn.functional.cosine_similarity(delta.cpu(), expected, dim=0))
    shape = {"shape": bench.lm.name, "contexts": len(bench.templates), "layer": bench.layer}
    rows = [{**shape, "what": "replay", "requests": 1, **row, "cosine": cosine}]
    for count in flags.together:
        several = requests(count)
        row = compared(
            lambda several=several: [bench.ours([r]) for r in several],  # type: ignore[misc]
            lambda several=several: bench.ours(several),  # type: ignore[misc]
            flags.pairs,
        )
        rows.append({**shape, "what": "together", "requests": count, **row})
    report("rome_edit" + ("_xl" if flags.xl else ""), rows)


if __name__ == "__main__":
    main()
