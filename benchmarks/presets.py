"""ROME's preset `fast` against `code` in float32: updates, times, and scores of the same facts.

    python benchmarks/presets.py                       # the embedded world, 100 facts
    python benchmarks/presets.py --world smollm2 --cases 24 --timed 2 --run runs/presets

One thread. Times, scores and differences are those of `arithmetic.py`; both presets use the same
statistics. Writes `benchmarks/results/presets_WORLD.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from arithmetic import two_ways
from paired import report

from lmedit.cases import load_cases
from lmedit.plan import Plan, set_up

PRESETS = ("code", "fast")
SAME = {"tolerance": 0.1}
"""`code` would count C over all text of the world, `fast` until it settles."""


def main() -> None:
    """Print the row and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="demo")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--timed", type=int, default=8, help="facts whose edits are timed")
    parser.add_argument("--run", type=Path, help="a folder that keeps finished edits")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    setup = set_up(Plan(("rome",), asked.world))
    (rome,) = setup.methods
    editors = {
        preset: setup.editor(rome, setup.options(rome, preset=preset, **SAME)) for preset in PRESETS
    }
    with TemporaryDirectory() as folder:
        cases = load_cases(asked.world, asked.cases)
        row = two_ways(editors, cases, asked.timed, asked.run or Path(folder))
    told = {"model": asked.world, "method": "rome"}
    told |= {f"compute of {name}": editor.options.compute for name, editor in editors.items()}
    report(f"presets_{asked.world}", [{**told, **row}])


if __name__ == "__main__":
    main()
