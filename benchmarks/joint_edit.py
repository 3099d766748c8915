"""The cost of joint edits: targets, solution and memory of MEMIT, beside ROME's single values.

    python benchmarks/joint_edit.py                           # demo, 1, 10 and 100 facts
    python benchmarks/joint_edit.py -m smollm2 --edits 1 10 100 1000
    python benchmarks/joint_edit.py -m smollm2 --edits 1 10 100 --name growth -o steps 2

One row for each number of facts: seconds of the joint edit, of its targets and of its solutions,
the peak of memory, and the seconds of ROME's values for the same facts in groups of eight. On a CPU
they are CPU seconds, so that other processes do not count. The statistics are not part of it. `-o`
is an option of both methods. Writes `results/joint_edit_MODEL.json`, anew after
each row, with `--name` another file.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from paired import report

from lmedit.memory import MEBIBYTE, peak_memory
from lmedit.plan import Plan, set_up
from lmedit_memit import joining
from lmedit_memit.remembering import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit import Editor, Request

GROUP = 8


class Clock:
    """Adds up the seconds of a function's calls."""

    def __init__(self, work: Callable[..., Any], now: Callable[[], float]) -> None:
        """Measure *work*; *now* tells the time."""
        self.work, self.now, self.seconds = work, now, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it."""
        started = self.now()
        try:
            return self.work(*arguments, **named)
        finally:
            self.seconds += self.now() - started


def measure(memit: Editor, rome: Editor, requests: Sequence[Request]) -> dict[str, Any]:
    """A row for *requests*."""
    now = time.process_time if memit.lm.device.type == "cpu" else time.perf_counter
    targets, solution = Clock(joining.find_targets, now), Clock(joining.joint_keys, now)
    joint = Clock(memit.compute_joint, now)
    memit.lm.state()
    forget(memit.lm)  # targets of fewer facts would be remembered
    with (
        patch.object(joining, "find_targets", targets),
        patch.object(joining, "joint_keys", solution),
        peak_memory(memit.lm.device) as peak,
    ):
        joint(requests)
    single = Clock(rome.compute_many, now)
    for start in range(0, len(requests), GROUP):
        single(requests[start : start + GROUP])
    return {
        "model": memit.lm.name,
        "edits": len(requests),
        "clock": "CPU" if now is time.process_time else "wall",
        "seconds": joint.seconds,
        "target_seconds": targets.seconds,
        "solution_seconds": solution.seconds,
        "solution_share": solution.seconds / joint.seconds,
        "peak_mebibytes": peak.mebibytes,
        "factor_mebibytes": max(t.nbytes for t in memit.prepared.tensors.values()) / MEBIBYTE,
        "rome_seconds": single.seconds,
        "times_rome": joint.seconds / single.seconds,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="demo")
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--name", help="the name of the results file")
    parser.add_argument("-o", "--option", nargs=2, action="append", default=[])
    flags = parser.parse_args()
    methods = ("memit", "rome")
    options = tuple((f"{name}.{key}", value) for key, value in flags.option for name in methods)
    plan = Plan(methods=methods, model=flags.model, cases=flags.model, options=options)
    setup = set_up(plan)
    memit, rome = setup.editors()
    requests = [case.request for case in plan.load_cases(flags.model).good]
    rows: list[dict[str, Any]] = []
    for n in flags.edits:
        if n <= len(requests):
            rows.append(dict(flags.option) | measure(memit, rome, requests[:n]))
            report(flags.name or f"joint_edit_{flags.model}", rows)


if __name__ == "__main__":
    main()
