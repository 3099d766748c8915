"""The notebooks of the docs run from top to bottom, and give the outputs that are stored."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from demo_cache import demo_statistics

__all__ = ["demo_statistics"]
DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("make_notebooks", DOCS / "make_notebooks.py")
assert SPEC is not None
assert SPEC.loader is not None
MADE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MADE)
pytestmark = pytest.mark.slow


def texts(cells: list[Any]) -> list[str]:
    """The outputs of all cells, without styles, tags and numbers, which differ with the machine."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = "".join(data.get("text/html") or output.get("text") or data.get("text/plain"))
            text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL)
            found.append(" ".join(re.sub(r"\b[0-9a-f]{12}\b|[-+]?\d[\d.e-]*", "#", text).split()))
    return found


@pytest.mark.filterwarnings("ignore")  # of the libraries that talk to the kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_its_stored_outputs(
    path: Path, demo_statistics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(demo_statistics))
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = texts(MADE.run(path).cells)
    assert found == texts(stored)
    assert any("verdict: took" in text for text in found)


def test_there_are_two_notebooks_without_paths_of_a_machine() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare-methods", "edit-and-undo"]
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert "site-packages" not in text
        assert '"stderr"' not in text
