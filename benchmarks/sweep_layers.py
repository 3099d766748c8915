"""Sweep ROME over all layers of the embedded model, FT and FT-L over layers and rates.

    python benchmarks/sweep_layers.py --cases 50

A run that was stopped goes on in its folder (`--run`), and two processes may share one. The sweep
scores on the *last* records of the world, so that the demo's first records stay unseen, prints
a table, writes `benchmarks/results/demo_sweep.json` and `docs/explanation/demo-sweep.md`, and puts
the best setting of each method into the model folder's `lmedit-tuned.json`, with the evidence.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit import build_options, load, load_lm, prepare
from lmedit.cases import corpus_of, load_cases
from lmedit.compare.comparison import compare
from lmedit.compare.table import table
from lmedit.models import TUNED_FILE, world
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit import Lm
    from lmedit.cases import CaseSet

FINALISTS, RUN_OFF = 3, 4
"""So many settings of each method are measured again, on so many times the records."""
HERE = Path(__file__).parent
RATES = (5e-4, 1e-3, 2e-3, 5e-3)
BOUNDS = (2e-2, 5e-2)
SMALL = {"samples": 600, "ridge": 1e-5, "prefixes": [[5, 2], [10, 2]]}
"""ROME on a small model: lines of the world's text behind C, some 30 keys for each dimension; a
ridge, since some units of its MLP are never active; four sampled contexts in place of twenty, to
save time."""


def settings(lm: Lm) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every (method, options) of the sweep."""
    layers = range(lm.n_layers)
    for layer in layers:
        yield "rome", {"layer": layer, **SMALL}
    for layer, rate in product(layers, RATES):
        yield "ft", {"layer": layer, "learning_rate": rate}
    for layer, rate, bound in product(layers, RATES[2:], BOUNDS):
        yield "ft-l", {"layer": layer, "learning_rate": rate, "epsilon": bound}


def measure(
    lm: Lm, cases: CaseSet, method: str, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The comparison's row for one setting."""
    loaded = load(method)
    editor = prepare(
        loaded, lm, build_options(loaded.method, options, lm), corpus_of(None, lm.text)
    )
    results = compare(lm, cases, [editor], folder, seed=0)
    row: dict[str, Any] = results["rows"][1]
    return {**row, "method": method, "setting": options}


def page(rows: list[dict[str, Any]], count: int) -> str:
    """The table as a document."""
    named = [
        {**row, "method": f"{row['method']} {_words(row['setting'])}", "prepare_seconds": None}
        for row in rows
    ]
    return (
        "# Where the embedded model can be edited\n\n"
        f"```console\npython benchmarks/sweep_layers.py --cases {count}\n```\n\n"
        f"This command measures every setting on the last {count} records of the embedded\n"
        f"world. Then it measures the {FINALISTS} best settings of each method again, on the\n"
        f"last {RUN_OFF * count} records (the last lines of the table). The model's\n"
        "`lmedit-tuned.json` holds the best of these.\n\n"
        "The training of the model decided where it recalls facts. This table therefore says\n"
        "nothing about other models. RelS is relation specificity: the share of the subject's\n"
        "other facts that are still right. To save time, ROME uses four sampled contexts here\n"
        "in place of twenty (`-o prefixes '[[5,10],[10,10]]'` has twenty).\n\n"
        f"```text\n{table(named)}\n```\n"
    )


def _words(setting: dict[str, Any]) -> str:
    return " ".join(f"{name}={v:g}" for name, v in setting.items() if name not in SMALL)


def main() -> None:
    """Run the sweep and write its three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--run", type=Path, default=Path("runs") / "sweep")
    chosen = parser.parse_args()
    count = chosen.cases
    lm = load_lm("demo")
    everything = load_cases("demo")

    def measured(method: str, options: dict[str, Any], count: int) -> dict[str, Any]:
        cases = replace(everything, items=everything.items[-count:])
        started = time.monotonic()
        row = measure(lm, cases, method, options, chosen.run)
        took = time.monotonic() - started
        print(f"{table([row])}\n{options} {took:.0f} s", file=sys.stderr)
        return row

    rows = [measured(method, options, count) for method, options in settings(lm)]
    best = {}
    for method in ("rome", "ft", "ft-l"):
        ranked = sorted((r for r in rows if r["method"] == method), key=lambda r: -r["S"])
        again = [measured(method, row["setting"], RUN_OFF * count) for row in ranked[:FINALISTS]]
        rows += again
        best[method] = max(again, key=lambda r: r["S"])
    shown = ("S", "ES", "PS", "NS", "relation_specificity")
    tuned = {
        method: {
            "options": row["setting"],
            "evidence": {
                "cases": f"last {RUN_OFF * count} of demo", "cases_digest": everything.digest,
                "model_digest": lm.digest, **{name: row[name] for name in shown},
            },
        }
        for method, row in best.items()
    }  # fmt: skip
    write_json(HERE / "results" / "demo_sweep.json", {"model": lm.digest, "rows": rows})
    write_json(world("demo").model / TUNED_FILE, {**lm.tuned, **tuned})
    sweep = HERE.parent / "docs" / "explanation" / "demo-sweep.md"
    sweep.write_text(page(rows, count), encoding="utf-8")
    print(page(rows, count))


if __name__ == "__main__":
    main()
