"""What tests of all folders share."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from made_plugins import distribution_in
from once import made_once
from warm import interpreter

from lmedit.cli import main
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


@pytest.fixture(scope="session")
def demo_statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with ROME's statistics of the embedded model, which take seconds."""

    def prepare(folder: Path) -> None:
        call = ["prepare", "rome", "-m", "demo"]
        done = CliRunner(env={"LMEDIT_CACHE": str(folder)}).invoke(main, call)
        assert done.exit_code == 0, done.output

    return made_once(tmp_path_factory, "demo-statistics", prepare)


@pytest.fixture
def demo_is_prepared(demo_statistics: Path, tmp_path: Path) -> None:
    """Put the statistics into the test's own cache; ask for it if their making is not tested."""
    shutil.copytree(demo_statistics, tmp_path / "cache", dirs_exist_ok=True)
