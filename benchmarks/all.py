"""All ratios in one table: plain against ours, the same inputs, one run.

    python3 dev.py bench            # about twelve minutes on two cores
    python3 dev.py bench -- --xl    # GPT-2 XL's shape too: an accelerator, or hours

Runs the scripts beside this one, each in a process of its own, one after the other, then prints
what each wrote to `benchmarks/results/` as one table, and writes it to `results/bench.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from paired import RESULTS, machine

from lmedit.artifacts import write_json

HERE = Path(__file__).parent
SCRIPTS = {
    "rome_edit": ["--together", "8"],
    "evaluation": ["--records", "8"],
    "kn_staircase": ["--lengths", "8", "12", "--facts", "2"],
    "causal_tracing": [],
    "hyper_training": [],
}
"""Scripts that compare two ways, and what they are given for a short run."""
WITH_XL = ("rome_edit", "evaluation", "kn_staircase")
TOLD = ("shape", "model", "method", "what", "points", "prompt_tokens", "tokens", "from_subject",
        "requests", "records")  # fmt: skip
"""What tells the rows of one script apart."""
COLUMNS = ("times_faster", "times_fewer_flops", "plain_seconds", "our_seconds",
           "plain_peak_mebibytes", "our_peak_mebibytes")  # fmt: skip


def rows_of(name: str) -> list[dict[str, Any]]:
    """The comparing rows of a script's results."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return [{"benchmark": name, **row} for row in rows if "times_faster" in row]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [["what", *COLUMNS]]
    for row in rows:
        told = " ".join(f"{name}={row[name]}" for name in TOLD if name in row)
        cells = [row.get(column) for column in COLUMNS]
        lines.append(
            [f"{row['benchmark']} {told}", *("-" if c is None else f"{c:.3g}" for c in cells)]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if not i else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1, help="measured pairs of each ratio")
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    flags = parser.parse_args()
    rows = []
    for name in flags.only:
        more = [["--xl", "--device", flags.device]] if flags.xl and name in WITH_XL else []
        for extra in ([], *more):
            command = [sys.executable, HERE / f"{name}.py", "--pairs", flags.pairs, *SCRIPTS[name]]
            print(f"bench: {name} {' '.join(extra)}", file=sys.stderr, flush=True)
            subprocess.run([*map(str, command), *extra], check=True, stdout=subprocess.DEVNULL)
            rows += rows_of(name + ("_xl" if extra else ""))
    print(table(rows))
    write_json(RESULTS / "bench.json", {"machine": machine(), "pairs": flags.pairs, "rows": rows})


if __name__ == "__main__":
    main()
