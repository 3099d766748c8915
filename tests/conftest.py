"""What tests of all folders share."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import children  # noqa: F401  (a forked child gets its own lock of tqdm)
import pytest
import torch
from made_plugins import distribution_in
from warm import interpreter

from lmedit.registry import BLOCK_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from made_plugins import Install


LONGEST = 900
"""The seconds after which a test hangs. The longest one takes two minutes."""
BEFORE = 60
"""The watch of a test may be one that began so many seconds before: a new one needs a thread."""
STDERR = os.dup(2)
_WATCHED = pytest.StashKey[float]()
"""When the watch began."""


def skip_drawing_nothing() -> None:
    """Draw no numbers for tensors without numbers. torch takes a fifth of each load for it.

    transformers makes a model that it reads from a file without numbers first.
    """
    draw = torch.nn.init.normal_

    def normal_(tensor: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return tensor if tensor.is_meta else draw(tensor, *given, **named)

    torch.nn.init.normal_ = normal_


skip_drawing_nothing()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End a process that hangs: it prints where every thread is, and the test counts as failed.

    A thread outside Python watches, so that a wait in foreign code ends too.
    """
    now, kept = time.monotonic(), item.config.stash
    if now - kept.get(_WATCHED, -BEFORE) >= BEFORE:
        faulthandler.dump_traceback_later(LONGEST + BEFORE, exit=True, file=STDERR)
        kept[_WATCHED] = now
    return (yield)


def pytest_unconfigure() -> None:
    """End the watch."""
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
