"""What tests of all folders share."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_plugins import distribution_in
from warm import interpreter

from lmedit.registry import BLOCK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from made_plugins import Install


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install distributions made here; their modules' names begin with ``toy_``."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv(BLOCK_VARIABLE, raising=False)
    before = set(sys.modules)
    yield partial(distribution_in, site)
    for imported in set(sys.modules) - before:
        if imported.startswith("toy_"):
            del sys.modules[imported]


@pytest.fixture(scope="session")
def warm() -> Iterator[tuple[str, ...]]:
    """The call of a Python that has imported torch: for processes that may be warm (`warm.py`)."""
    with interpreter(Path(sys.executable), os.environ) as found:
        yield found
