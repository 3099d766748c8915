"""Run the notebooks of the docs and store their outputs: `python docs/make_notebooks.py [NAME...]`.

A test runs them too, and compares the outputs with the stored ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).with_name("notebooks")
LONGEST = 600
"""The seconds that one cell may take."""


def run(path: Path) -> Any:
    """The notebook *path* with fresh outputs. An error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=LONGEST, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in map(keep_result, cell.outputs) if each]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def keep_result(output: Any) -> Any:
    """*output* with one form of each value; None for a progress bar or a warning."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if "text/html" in output.data:
        output.data.pop("text/plain", None)
    return output


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")):
        made = run(NOTEBOOKS / name)
        nbformat.write(made, NOTEBOOKS / name)
