"""Tables of the page on performance have the figures of the scripts' results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/performance.md").read_text(encoding="utf-8")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of `benchmarks/results/NAME.json`."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows


def cells(heading: str) -> list[list[str]]:
    """All rows of the tables below *heading*, without code marks."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line[1:-1].split("|")] for line in lines]


def test_the_first_second() -> None:
    table, rows = cells("The first second"), rows_of("first_second")
    for row in rows:
        if "imports" in row:
            expected = [row["imports"], f"{row['plain_ms']:.0f}", f"{row['our_ms']:.0f}"]
            assert expected in table
        else:
            figures = [f"{row['cpu_seconds']:.2f}", f"{row['seconds']:.1f}"]
            assert figures in [
                line[1:]
                for line in table
                if line[0] in {row["command"], f"lmedit {row['command']}"}
            ]


def test_long_prompts_and_answers() -> None:
    *steps, mixed = rows_of("growth_tokens")
    table = cells("Long prompts and long answers")[2:]
    assert table == [
        [
            *(str(row[name]) for name in ("words", "answer_tokens", "tokens_a_step")),
            f"{row['gflop']:.1f}",
            f"{row['gflop'] / row['tokens_a_step']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        for row in steps
    ]
    told = PAGE.split("\n## Long prompts and long answers\n")[1]
    assert f"{mixed['times_fewer_flops']:.1f} times fewer" in told
    assert f"{mixed['times_faster']:.1f} times faster" in told
