"""The table of statistics from other texts has the figures of `benchmarks/own_text.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/real-model.md").read_text(encoding="utf-8")
FILE = ROOT / "benchmarks" / "results" / "own_text.json"


def tell_cells(row: dict[str, Any]) -> list[str]:
    """The cells of a row behind its name."""
    cells = [str(row["keys"])]
    for score in ("S", "NS", "NM"):
        apart, low, high = row[f"{score} apart"]
        cells += [f"{row[score]:.1f}", f"{apart} [{low}, {high}]"]
    return [cell if cell != "0.0 [0.0, 0.0]" else "-" for cell in cells]


def test_each_row_of_the_results_is_in_the_table() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line[1:-1].split("|")][1:] for line in lines]
    assert all(tell_cells(row) in table for row in rows)
    assert {row["facts"] for row in rows} == {24}
    assert all(row["ES"] == 100 for row in rows)
