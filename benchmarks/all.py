"""All ratios in one table: plain against ours, the same inputs, one run; then what edits cost.

    python3 dev.py bench            # about twenty minutes on two cores
    python3 dev.py bench -- --xl    # GPT-2 XL's shape too: an accelerator, or hours

Runs the scripts beside this one, each in a process of its own, one after the other, then prints
what each wrote to `benchmarks/results/`: the comparisons as one table, seconds of an edit by method
and by size as another. Writes both to `results/bench.json`.

The first run on a machine is its reference (`results/reference.json`; --renew makes a new one). A
ratio that falls by more than a quarter is a warning, and twice in a row an error (exit code 1).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from paired import RESULTS, machine
from reference import FILE, hold

from lmedit.models.sources import pulled_folder
from lmedit.storage.json_files import write_json

HERE = Path(__file__).parent
SCRIPTS = {
    "rome_edit": ["--together", "8"],
    "evaluation": ["--records", "8"],
    "kn_staircase": ["--lengths", "8", "12", "--facts", "2"],
    "causal_tracing": [],
    "hyper_training": [],
}
"""Scripts that compare two ways, and what they are given for a short run."""
COSTS = {"edit_seconds": [], "growth": ["--only", "edits", "--edits", "1", "10", "100"]}
"""Scripts that measure seconds of edits, likewise."""
WITH_WORLD = {
    "rome_edit": ["--facts", "2"],
    "evaluation": ["--records", "8"],
    "kn_staircase": ["--lengths", "8"],
    "causal_tracing": ["--samples", "3"],
}
"""Scripts that also measure a world's own model, and what they are given then."""
WITH_XL = ("rome_edit", "evaluation", "kn_staircase", "edit_seconds")
TOLD = (
    "shape",
    "model",
    "method",
    "what",
    "points",
    "prompt_tokens",
    "tokens",
    "from_subject",
    "requests",
    "records",
    "grows",
    "edits",
    "layers",
    "words",
    "where",
)
"""What tells the rows of one script apart."""
RATIOS = (
    "times_faster",
    "times_fewer_flops",
    "plain_seconds",
    "our_seconds",
    "plain_peak_mebibytes",
    "our_peak_mebibytes",
    "share_of_matmul_rate",
)
COST = ("seconds", "seconds_single", "seconds_batch", "gflop", "peak_mebibytes")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a script's results that compare or tell a cost."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return [{"benchmark": name, **row} for row in rows if any(c in row for c in RATIOS + COST)]


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """The rows as text."""
    lines = [["what", *columns]]
    for row in rows:
        cells = [row.get(column) for column in columns]
        lines.append([tell_row(row), *("-" if c is None else f"{c:.3g}" for c in cells)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if not i else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def tell_row(row: dict[str, Any]) -> str:
    """What tells the row apart from all others."""
    return " ".join([row["benchmark"], *(f"{name}={row[name]}" for name in TOLD if name in row)])


def hold_to_reference(rows: list[dict[str, Any]], file: Path = FILE, *, anew: bool = False) -> None:
    """Warn of ratios that fell on this machine, and end with exit code 1 if one fell again."""
    names = ("times_faster", "times_fewer_flops")
    ratios = {f"{tell_row(row)} {name}": row[name] for row in rows for name in names if name in row}
    once, again = hold(machine(), ratios, file, anew=anew)
    for line in once:
        print(f"bench: warning: {line}", file=sys.stderr)
    if again:
        remedy = "find the change that made it slow, or give --renew"
        print(f"bench: twice in a row, {'; '.join(again)}; {remedy}", file=sys.stderr)
        sys.exit(1)


def find_pulled() -> list[str]:
    """The worlds whose models are on this machine."""
    return ["demo", *(["smollm2"] if pulled_folder("smollm2").is_dir() else [])]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1, help="measured pairs of each ratio")
    parser.add_argument("--xl", action="store_true", help="GPT-2 XL's shape too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--worlds",
        nargs="*",
        default=find_pulled(),
        help="worlds whose own models are measured too",
    )
    names = [*SCRIPTS, *COSTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--renew", action="store_true", help="make this run the reference")
    flags = parser.parse_args()
    rows = []
    for name in flags.only:
        given = COSTS[name] if name in COSTS else ["--pairs", str(flags.pairs), *SCRIPTS[name]]
        runs = {"": given}
        if flags.xl and name in WITH_XL:
            runs["_xl"] = [*given, "--xl", "--device", flags.device]
        if name in WITH_WORLD:
            pairs = ["--pairs", str(flags.pairs)]
            runs |= {f"_{w}": [*pairs, *WITH_WORLD[name], "--world", w] for w in flags.worlds}
        for suffix, arguments in runs.items():
            print(f"bench: {name} {' '.join(arguments)}", file=sys.stderr, flush=True)
            command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows += rows_of(name + suffix)
    ratios = [row for row in rows if "times_faster" in row]
    costs = [row for row in rows if "times_faster" not in row]
    print("\n\n".join(table(*part) for part in ((ratios, RATIOS), (costs, COST)) if part[0]))
    write_json(RESULTS / "bench.json", {"machine": machine(), "pairs": flags.pairs, "rows": rows})
    hold_to_reference(ratios, anew=flags.renew)


if __name__ == "__main__":
    main()
