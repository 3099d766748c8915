"""Where the scripts of this world read and write."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
TABLES_DIR = HERE / "tables"
PACKAGE_DIR = HERE / "src" / "lmedit_smollm2"
DEMO_TABLES = next(
    (
        f
        for f in (HERE.parent / "demo" / "world", HERE.parent.parent / "demo" / "world")
        if f.is_dir()
    ),
    HERE.parent / "demo" / "world",
)
"""The embedded world's tables, read here too."""
