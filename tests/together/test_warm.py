"""Warm processes: what they start begins warm too, and as clean as if it were started anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has warm processes")

ASKING = """
import lmedit_rome
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from lmedit.cli.processes import ask

for name in ("torch", "lmedit", "lmedit_rome"):
    print(name, ask(eval, f"{name!r} in __import__('sys').modules"))
print(Path(f"/proc/{_forkserver._forkserver_pid}/cmdline").read_text().split("\\0")[1])
"""


def test_a_fork_server_begins_with_the_libraries_and_without_plugins(
    warm: tuple[str, ...],
) -> None:
    done = subprocess.run(
        [*warm, "-c", ASKING], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *imported, started = done.stdout.splitlines()
    assert imported == ["torch True", "lmedit True", "lmedit_rome False"]
    assert started.endswith("warm.py")
