"""Import the scripts in the folder `docs`, which are no packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.registry import module_of

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    """The script ``docs/NAME.py`` as a module."""
    return module_of(DOCS / f"{name}.py")
