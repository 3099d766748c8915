"""What takes seconds to make is made by one worker of a test run, and used by all."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

DONE = "made"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this test run; the first worker that asks for *name* lets *make* fill it.

    The others wait. A folder that could not be filled is made anew by the next one that asks.
    """
    shared = "PYTEST_XDIST_WORKER" in os.environ  # then each worker has a folder inside the run's
    run = factory.getbasetemp().parent if shared else factory.getbasetemp()
    folder, done = run / name, run / f"{name}.{DONE}"
    with FileLock(run / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
