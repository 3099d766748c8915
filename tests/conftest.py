"""What tests of all folders share."""

from __future__ import annotations

import faulthandler
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import children  # noqa: F401  (a forked child gets its own lock of tqdm)
import pytest
from made_plugins import distribution_in
from warm import interpreter

from lmedit.registry import BLOCK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from made_plugins import Install


LONGEST = 900
"""The seconds after which a test hangs. The longest one takes two minutes."""
STDERR = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End a process that hangs: it prints where every thread is, and the test counts as failed.

    A thread outside Python watches, so that a wait in foreign code ends too.
    """
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


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
