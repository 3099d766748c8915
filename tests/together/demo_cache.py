"""The embedded model's statistics for ROME, which take seconds: made once in a test run."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from once import made_once

from lmedit.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def demo_statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with ROME's statistics of the embedded model."""

    def prepare(folder: Path) -> None:
        call = ["prepare", "rome", "-m", "demo"]
        done = CliRunner(env={"LMEDIT_CACHE": str(folder)}).invoke(main, call)
        assert done.exit_code == 0, done.output

    return made_once(tmp_path_factory, "demo-statistics", prepare)


@pytest.fixture
def demo_is_prepared(demo_statistics: Path, tmp_path: Path) -> None:
    """Put the statistics into the test's own cache; ask for it if their making is not tested."""
    shutil.copytree(demo_statistics, tmp_path / "cache", dirs_exist_ok=True)
