"""The cost of joint edits: targets, solution and memory of MEMIT, beside ROME's single values.

    python benchmarks/joint_edit.py                           # demo, 1, 10 and 100 facts
    python benchmarks/joint_edit.py -m smollm2 --edits 1 10 100 1000

One row for each number of facts: seconds of the joint edit, of its targets and of its solutions,
the peak of memory, and the seconds of ROME's values for the same facts in groups of eight. The
statistics are not part of it; prepare both methods first. Writes `results/joint_edit.json`.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from paired import report

from lmedit.memory import peak_memory
from lmedit.plan import Plan, set_up
from lmedit_memit import joining

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit import Editor, Request

GROUP = 8


class Clock:
    """Adds up the seconds of a function's calls."""

    def __init__(self, work: Callable[..., Any]) -> None:
        """Measure *work*."""
        self.work, self.seconds = work, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        started = time.perf_counter()
        try:
            return self.work(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - started


def measure(memit: Editor, rome: Editor, requests: Sequence[Request]) -> dict[str, Any]:
    """A row for *requests*."""
    targets, solution = Clock(joining.find_targets), Clock(joining.joint_keys)
    memit.lm.state()
    with (
        patch.object(joining, "find_targets", targets),
        patch.object(joining, "joint_keys", solution),
        peak_memory(memit.lm.device) as peak,
    ):
        started = time.perf_counter()
        memit.compute_joint(requests)
        seconds = time.perf_counter() - started
    started = time.perf_counter()
    for start in range(0, len(requests), GROUP):
        rome.compute_many(requests[start : start + GROUP])
    single = time.perf_counter() - started
    return {
        "model": memit.lm.name,
        "edits": len(requests),
        "seconds": seconds,
        "target_seconds": targets.seconds,
        "solution_seconds": solution.seconds,
        "solution_share": solution.seconds / seconds,
        "peak_mebibytes": peak.mebibytes,
        "rome_seconds": single,
        "times_rome": seconds / single,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 100])
    flags = parser.parse_args()
    plan = Plan(methods=("memit", "rome"), model=flags.model, cases=flags.model)
    setup = set_up(plan)
    memit, rome = setup.editors()
    requests = [case.request for case in plan.load_cases(flags.model).good]
    rows = [measure(memit, rome, requests[:n]) for n in flags.edits if n <= len(requests)]
    report("joint_edit", rows)


if __name__ == "__main__":
    main()
