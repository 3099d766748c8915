"""Sweep ROME over layers, and FT and FT-L over layers and rates, on a world's model.

    python benchmarks/sweep_layers.py --cases 50
    python benchmarks/sweep_layers.py --world smollm2 --cases 10

A run that was stopped goes on in its folder (`--run`), and two processes may share one. The sweep
scores on the *last* records of the world, so that the first records stay unseen. It prints a table,
writes `benchmarks/results/WORLD_sweep.json` and `docs/explanation/WORLD-sweep.md`, and puts the
best setting of each method into the world's `lmedit-tuned.json`, with the evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit import build_options, load, load_lm, prepare
from lmedit.cases import corpus_of, load_cases
from lmedit.compare.comparison import compare
from lmedit.compare.table import table
from lmedit.models import TUNED_FILE, world
from lmedit.storage.json_files import write_entries, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit import Lm
    from lmedit.cases import CaseSet

FINALISTS, RUN_OFF = 3, 4
"""So many settings of each method are measured again, on so many times the records."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Sweep:
    """What is tried on one world."""

    rome_layers: Sequence[int]
    rome: Mapping[str, Any]
    """The other options of ROME."""
    layers: Sequence[int]
    """The layers of FT and FT-L."""
    rates: Sequence[float]
    bounds: Sequence[float]
    told: str
    """What the page says of the world and of the options."""

    def settings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every (method, options) of the sweep."""
        for layer in self.rome_layers:
            yield "rome", {"layer": layer, **self.rome}
        for layer, rate in product(self.layers, self.rates):
            yield "ft", {"layer": layer, "learning_rate": rate}
        for layer, rate, bound in product(self.layers, self.rates[-2:], self.bounds):
            yield "ft-l", {"layer": layer, "learning_rate": rate, "epsilon": bound}


SWEEPS = {
    # Lines of the world's text behind C: some 30 keys for each dimension. A ridge, since some units
    # of the MLP are never active. Four sampled contexts in place of twenty, to save time.
    "demo": Sweep(
        range(8),
        {"samples": 600, "ridge": 1e-5, "prefixes": [[5, 2], [10, 2]]},
        range(8),
        (5e-4, 1e-3, 2e-3, 5e-3),
        (2e-2, 5e-2),
        "The training of the model decided where it recalls facts. This table therefore says\n"
        "nothing about other models. To save time, ROME uses four sampled contexts here\n"
        "in place of twenty (`-o prefixes '[[5,10],[10,10]]'` has twenty).",
    ),
    "smollm2": Sweep(
        (1, 2, 3, 4, 6, 8, 12, 16),
        {"prefixes": [[5, 3], [10, 3]]},
        (1, 8, 16, 24),
        (5e-4, 2e-3, 5e-3),
        (2e-3, 1e-2),
        "Nobody prepared this model for edits. To save time, ROME uses six sampled contexts here\n"
        "in place of twenty. Its last losses are the same\n"
        "([the real model](real-model.md)).",
    ),
}


def measure(
    lm: Lm, cases: CaseSet, method: str, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The comparison's row for one setting."""
    loaded = load(method)
    editor = prepare(
        loaded, lm, build_options(loaded.method, options, lm), corpus_of(None, lm.text)
    )
    results = compare(lm, cases, [editor], folder, seed=0).finish()
    row: dict[str, Any] = results["rows"][1]
    return {**row, "method": method, "setting": options}


def page(world: str, rows: list[dict[str, Any]]) -> str:
    """The table as a document."""
    named = [
        {**row, "method": f"{row['method']} {_words(row['setting'])}", "prepare_seconds": None}
        for row in rows
    ]
    return (
        f"# Where the model of the world {world} can be edited\n\n"
        f"```console\n{_commands(world, rows)}\n```\n\n"
        "A command measures every setting of its methods on the last records of the world.\n"
        f"Then it measures the {FINALISTS} best settings of each method again, on {RUN_OFF} times\n"
        "as many records. These are the last lines of the table. "
        "The column n is the number of records.\n"
        "The world's `lmedit-tuned.json` holds the best of these.\n\n"
        f"{SWEEPS[world].told}\n\n"
        "RelS is relation specificity: the share of the subject's other facts that are still\n"
        "right.\n\n"
        f"```text\n{table(named)}\n```\n"
    )


def _commands(world: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The commands that measure *rows*: one for each number of records."""
    methods = {row["method"]: 0 for row in rows}
    cases = {name: min(row["n"] for row in rows if row["method"] == name) for name in methods}
    return "\n".join(
        f"python benchmarks/sweep_layers.py --world {world} --cases {count} --methods "
        + " ".join(name for name in methods if cases[name] == count)
        for count in sorted(set(cases.values()), reverse=True)
    )


def _words(setting: dict[str, Any]) -> str:
    return " ".join(f"{name}={v:g}" for name, v in setting.items() if isinstance(v, int | float))


def _of_other_methods(results: Path, lm: Lm, methods: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of methods that are not swept now, from an earlier sweep of the same model."""
    if not results.is_file():
        return []
    earlier = json.loads(results.read_text(encoding="utf-8"))
    rows = earlier["rows"] if earlier["model"] == lm.digest else []
    return [row for row in rows if row["method"] not in methods]


def tuned_file(name: str) -> Path:
    """The file of tuned options that the world *name* ships."""
    found = world(name)
    return found.tuned or Path(found.model) / TUNED_FILE


def main() -> None:
    """Run the sweep and write its three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=SWEEPS, default="demo")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=["rome", "ft", "ft-l"])
    parser.add_argument("--run", type=Path, default=Path("runs") / "sweep")
    chosen = parser.parse_args()
    count = chosen.cases
    lm = load_lm(chosen.world)
    everything = load_cases(chosen.world)

    def measure_last(method: str, options: dict[str, Any], count: int) -> dict[str, Any]:
        cases = replace(everything, items=everything.items[-count:])
        started = time.monotonic()
        row = measure(lm, cases, method, options, chosen.run)
        took = time.monotonic() - started
        print(f"{table([row])}\n{options} {took:.0f} s", file=sys.stderr)
        return row

    tried = [s for s in SWEEPS[chosen.world].settings() if s[0] in chosen.methods]
    rows = [measure_last(method, options, count) for method, options in tried]
    best = {}
    for method in chosen.methods:
        ranked = sorted((r for r in rows if r["method"] == method), key=lambda r: -r["S"])
        again = [
            measure_last(method, row["setting"], RUN_OFF * count) for row in ranked[:FINALISTS]
        ]
        rows += again
        best[method] = max(again, key=lambda r: r["S"])
    shown = ("S", "ES", "PS", "NS", "relation_specificity")
    tuned = {
        method: {
            "options": row["setting"],
            "evidence": {
                "cases": f"last {RUN_OFF * count} of {chosen.world}",
                "cases_digest": everything.digest,
                "model_digest": lm.digest,
                **{name: row[name] for name in shown},
            },
        }
        for method, row in best.items()
    }
    results = HERE / "results" / f"{chosen.world}_sweep.json"
    rows = [*_of_other_methods(results, lm, chosen.methods), *rows]
    write_json(results, {"model": lm.digest, "rows": rows})
    write_entries(tuned_file(chosen.world), {**lm.tuned, **tuned})
    sweep = HERE.parent / "docs" / "explanation" / f"{chosen.world}-sweep.md"
    sweep.write_text(page(chosen.world, rows), encoding="utf-8")
    print(page(chosen.world, rows))


if __name__ == "__main__":
    main()
