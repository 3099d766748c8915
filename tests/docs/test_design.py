"""The design page lists every module of the core, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "src" / "lmedit"
LEFT_OUT = {"__init__.py", "_moved.py"}


def test_the_list_of_modules_is_the_folder() -> None:
    page = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+(?:/|\.py)) +\S", page, re.MULTILINE)
    folders = {
        f"{path.name}/" for path in CORE.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    modules = {path.name for path in CORE.glob("*.py")} - LEFT_OUT
    assert sorted(listed) == sorted(folders | modules)
