"""What tests of all folders share."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from made_plugins import distribution_in

from lmedit.registry import BLOCK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
