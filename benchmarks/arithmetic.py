"""Products in bfloat16 against float32: the same edits, their updates, scores and times.

    python benchmarks/arithmetic.py                    # the embedded world
    python benchmarks/arithmetic.py --world smollm2 --cases 40

For each method it computes the update of every case in both number types, one after the other.
It prints the mean cosine of the two updates, the ratio of the summed times, and the scores of
both. Writes `benchmarks/results/arithmetic_WORLD.json`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from paired import report, seconds

from lmedit.cases import load_cases
from lmedit.compare.comparison import compare
from lmedit.plan import Plan, set_up

if TYPE_CHECKING:
    from lmedit.cases import CaseSet
    from lmedit.pipeline import Editor
    from lmedit.types import Request, Update

METHODS = ("rome", "ft", "kn")
TYPES = ("float32", "bfloat16")
SCORES = ("S", "ES", "PS", "NS")


def flat(update: Update) -> torch.Tensor:
    """All changes of *update* as one vector in float64."""
    return torch.cat([delta.dense().flatten() for delta in update.deltas.values()]).double()


def cosine_and_times(editors: list[Editor], cases: CaseSet) -> tuple[float, list[float]]:
    """The mean cosine of both updates over *cases*, and the seconds of both editors."""
    cosines, times = [], [0.0] * len(editors)
    for case in cases.good:
        pair: list[Update] = []
        for number, editor in enumerate(editors):
            times[number] += seconds(partial(_keep, pair, editor, case.request))
        cosines.append(float(torch.nn.functional.cosine_similarity(*map(flat, pair), dim=0)))
    return sum(cosines) / len(cosines), times


def _keep(pair: list[Update], editor: Editor, request: Request) -> None:
    pair.append(editor.compute(request))


def scores(editor: Editor, cases: CaseSet, folder: Path) -> dict[str, float]:
    """The scores of *editor* over *cases*."""
    row = compare(editor.lm, cases, [editor], folder, seed=0).finish()["rows"][1]
    return {name: row[name] for name in SCORES}


def rows(world: str, cases: CaseSet) -> list[dict[str, Any]]:
    """A row for each method."""
    setup = set_up(Plan(METHODS, world))
    found = []
    for loaded in setup.methods:
        editors = [
            setup.editor(loaded, setup.options(loaded, compute=compute)) for compute in TYPES
        ]
        cosine, times = cosine_and_times(editors, cases)
        row: dict[str, Any] = {"model": world, "method": loaded.name, "cases": len(cases.good)}
        row |= {"cosine": cosine, "times_faster": times[0] / times[1]}
        for compute, editor in zip(TYPES, editors, strict=True):
            with TemporaryDirectory() as folder:
                row[compute] = scores(editor, cases, Path(folder))
        found.append(row)
    return found


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="demo")
    parser.add_argument("--cases", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = rows(asked.world, load_cases(asked.world, asked.cases))
    report(f"arithmetic_{asked.world}", found)


if __name__ == "__main__":
    main()
