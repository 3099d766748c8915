"""The tables of docs/explanation/performance.md about the two worlds, from `results/`.

python benchmarks/tables.py    # puts them into the page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
WORLDS = {"smollm2": "SmolLM2-135M", "demo": "embedded model"}
PASSES_ON = ("demo",)
"""The worlds on which passes without the option were measured."""
PRESETS_ON = ("demo",)
"""The worlds on which `fast` was compared with `code`."""

Rows = list[dict[str, Any]]


def rows_of(name: str) -> Rows:
    """The rows of a script's results."""
    rows: Rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def of_what(rows: Rows, key: str, what: str) -> str:
    """How many times less CPU time all rows of *what* took together."""
    chosen = [row for row in rows if row[key] == what]
    ratio = sum(r["plain_seconds"] for r in chosen) / sum(r["our_seconds"] for r in chosen)
    return f"{ratio:.1f}"


def worlds_table() -> str:
    """The ratios on both worlds."""
    asked = [
        ("ROME, replay alone", "rome_edit", "what", "replay"),
        ("ROME, preset `fast` against `code`", "rome_edit", "what", "fast against code"),
        (
            "ROME, preset `fast` against whole passes",
            "rome_edit",
            "what",
            "fast against whole passes",
        ),
        ("scoring eight records, nothing kept", "evaluation", "what", "first"),
        ("scoring eight records, kept by a method before", "evaluation", "what", "again"),
        ("KN, the same 20 points", "kn_staircase", "points", "same"),
        ("KN, the default against 20 points", "kn_staircase", "points", "default"),
        ("causal tracing", "causal_tracing", "what", "single states"),
    ]
    rows = [
        [told, *(of_what(rows_of(f"{script}_{world}"), key, what) for world in WORLDS)]
        for told, script, key, what in asked
    ]
    return markdown(["times faster", *WORLDS.values()], rows)


def interval(found: list[float]) -> str:
    """A difference and its interval."""
    return f"{found[0]:+.1f} [{found[1]:.1f}, {found[2]:.1f}]"


def cells_of(row: dict[str, Any], second: str, first: str, cells: list[str]) -> list[str]:
    """The cells of a row of `arithmetic.two_ways`."""
    return [
        *cells,
        str(row["cases"]),
        f"{row['cosine']:.4f}",
        *(f"{row[name]['S']:.1f}" for name in (first, second)),
        *(interval(row["difference"][score]) for score in ("S", "PS", "NS")),
        f"{row['times_faster']:.1f}",
    ]


HEAD = ["facts", "cosine", "S", "S", "difference of S", "of PS", "of NS", "times faster"]


def arithmetic_table() -> str:
    """Methods in bfloat16 against float32."""
    rows = [
        cells_of(row, "bfloat16", "float32", [WORLDS[world], row["method"]])
        for world in WORLDS
        for row in rows_of(f"arithmetic_{world}")
    ]
    head = ["model", "method", *HEAD]
    head[4:6] = ["S, float32", "S, bfloat16"]
    return markdown(head, rows)


def passes_table() -> str:
    """Passes without the option."""
    rows = [
        [
            WORLDS[world],
            row["method"],
            row["what"],
            f"{row['cosine']:.4f}",
            f"{row['times_faster']:.1f}",
        ]
        for world in PASSES_ON
        for row in rows_of(f"arithmetic_passes_{world}")
    ]
    return markdown(["model", "method", "what", "cosine", "times faster"], rows)


def presets_table() -> str:
    """ROME's preset `fast` against `code`."""
    rows = [
        cells_of(row, "fast", "code", [WORLDS[world]])
        for world in PRESETS_ON
        for row in rows_of(f"presets_{world}")
    ]
    head = ["model", *HEAD]
    head[3:5] = ["S, `code`", "S, `fast`"]
    return markdown(head, rows)


TABLES = {
    "worlds": worlds_table,
    "presets": presets_table,
    "arithmetic": arithmetic_table,
    "passes": passes_table,
}


def main() -> None:
    """Write the tables between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{table()}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
