"""Products in bfloat16 against float32: the same edits, their updates, scores and times.

    python benchmarks/arithmetic.py                    # the embedded world
    python benchmarks/arithmetic.py --world smollm2 --cases 12 --timed 2

One thread. For each method it computes the updates of some facts in both number types, in turns:
their mean cosine, and the ratio of the summed CPU seconds. Then it compares both over all cases:
scores, and paired differences with 95 % intervals, in points. Writes
`benchmarks/results/arithmetic_WORLD.json`, whose rows of other methods stay.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from paired import RESULTS, own_seconds, report
from tables import rows_of

from lmedit.cases import load_cases
from lmedit.compare.comparison import compare, differences
from lmedit.plan import Plan, set_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.cases import CaseSet
    from lmedit.pipeline import Editor
    from lmedit.types import Request, Update

METHODS = ("rome", "ft", "kn", "memit")
TYPES = ("float32", "bfloat16")
SCORES = ("S", "ES", "PS", "NS")


def flat(update: Update) -> torch.Tensor:
    """All changes of *update* as one vector in float64."""
    return torch.cat([delta.dense().flatten() for delta in update.deltas.values()]).double()


def cosine_and_times(
    editors: Sequence[Editor], requests: Sequence[Request]
) -> tuple[float, list[float]]:
    """The mean cosine of both updates of *requests*, and the CPU seconds of both editors."""
    cosines, times = [], [0.0] * len(editors)
    for request in requests:
        pair: list[Update] = []
        for number, editor in enumerate(editors):
            times[number] += own_seconds(partial(_keep, pair, editor, request))
        cosines.append(float(torch.nn.functional.cosine_similarity(*map(flat, pair), dim=0)))
    return sum(cosines) / len(cosines), times


def _keep(pair: list[Update], editor: Editor, request: Request) -> None:
    pair.append(editor.compute(request))


def two_ways(
    editors: Mapping[str, Editor], cases: CaseSet, timed: int, folder: Path
) -> dict[str, Any]:
    """The second of two *editors* against the first: times of *timed* facts, scores of all.

    The run *folder* keeps finished edits, so a stopped measurement goes on there.
    """
    requests = [case.request for case in cases.good]
    for editor in editors.values():
        editor.compute(requests[-1])  # what is worked out once: contexts, kernels, short cuts
    cosine, times = cosine_and_times([*editors.values()], requests[:timed])
    row: dict[str, Any] = {"cases": len(cases.good), "timed": timed, "cosine": cosine}
    row |= {"seconds": dict(zip(editors, times, strict=True)), "times_faster": times[0] / times[1]}
    outcomes = {}
    for name, editor in editors.items():
        compared = compare(editor.lm, cases, [editor], folder, seed=0)
        outcomes[name] = compared.outcomes[editor.name]
        row[name] = {score: compared.results["rows"][1][score] for score in SCORES}
    first, second = editors
    found = differences({second: outcomes[second], first: outcomes[first]}, seed=0)
    row["difference"] = {d["score"]: [d["estimate"], d["low"], d["high"]] for d in found}
    return row


def rows(world: str, methods: Sequence[str], cases: CaseSet, timed: int) -> list[dict[str, Any]]:
    """A row for each method."""
    setup = set_up(Plan(tuple(methods), world))
    found = []
    for loaded in setup.methods:
        editors = {
            compute: setup.editor(loaded, setup.options(loaded, compute=compute))
            for compute in TYPES
        }
        with TemporaryDirectory() as folder:
            row = two_ways(editors, cases, timed, Path(folder))
        found.append({"model": world, "method": loaded.name, **row})
    return found


def main() -> None:
    """Print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="demo")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--timed", type=int, default=4, help="facts whose edits are timed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = load_cases(asked.world, asked.cases)
    name = f"arithmetic_{asked.world}"
    stored = rows_of(name) if (RESULTS / f"{name}.json").is_file() else []
    found = [row for row in stored if row["method"] not in asked.methods]
    report(name, found + rows(asked.world, asked.methods, cases, asked.timed))


if __name__ == "__main__":
    main()
