"""What keeps a test run short: less work for the garbage collector, and a table of the costs."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

SHOWN = 15
"""The number of files in the table."""
PROCESSES = "PYTEST_XDIST_WORKER_COUNT"
"""The variable with the number of processes that share the tests."""
_CPU: Counter[str] = Counter()
_WALL: Counter[str] = Counter()
_TESTS: Counter[str] = Counter()


TRYING = frozenset({"attack", "families", "architecture", "worlds"})
"""Folders whose tests try the short cuts of every model."""

gc.disable()  # until all tests are collected (`pytest_collection`): what is imported stays


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process begin with its share of the files with slow tests.

    So no process ends with a long test alone. `--dist worksteal` first gives each process an equal
    part of the list, and later what is last in the list of another one.
    """
    count, total = int(os.environ.get(PROCESSES, "1")), len(items)
    slow = dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))
    turn = {path: number % count for number, path in enumerate(slow)}
    rest = [item for item in items if item.path not in turn]
    ordered: list[pytest.Item] = []
    for number in range(count):
        size = (total - len(ordered)) // (count - number)
        mine = [item for item in items if turn.get(item.path) == number]
        more = max(0, size - len(mine))
        ordered += mine + rest[:more]
        del rest[:more]
    items[:] = ordered + rest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector begin when all tests are collected."""
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of later garbage collections: it stays anyway.

    To look for garbage before takes a second and finds little.
    """
    gc.freeze()


def cpu_seconds() -> float:
    """The CPU seconds of this process, of its children, and of theirs that ended.

    Children that still run are counted on Linux alone.
    """
    alive = 0.0
    if sys.platform == "linux":
        with suppress(OSError):
            lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
            alive = sum(_of_child(number) for line in lists for number in line.split())
    return sum(os.times()[:4]) + alive


def _of_child(number: str) -> float:
    """The CPU seconds of the process *number* and of its children that ended."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the CPU seconds of a whole test, with its fixtures, into its last report."""
    report = yield
    if call.when == "teardown":
        now = cpu_seconds()
        report.cpu = now - item.config.stash[_STARTED]
        item.config.stash[_STARTED] = now
    return report


_STARTED = pytest.StashKey[float]()
"""The CPU seconds when the test began, which is when the test before it ended."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when the first test begins. Tests of the same model try its short cuts once.

    `tried_once.py` says which tests do so.
    """
    if _STARTED not in item.config.stash:
        item.config.stash[_STARTED] = cpu_seconds()
    free = item.path.parent.name not in TRYING
    if free or "tried_once" in sys.modules:
        import tried_once

        tried_once.share(
            getattr(item, "module", None) if free else None,
            getattr(item, "originalname", None) or item.name,
        )


def pytest_runtest_logreport(report: Any) -> None:
    """Add a report to the sums of its file. With several processes, the first one has them all."""
    file = report.nodeid.partition("::")[0]
    _WALL[file] += report.duration
    if report.when == "teardown":
        _CPU[file] += getattr(report, "cpu", 0.0)
        _TESTS[file] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the files that took the most CPU time."""
    if len(_TESTS) <= SHOWN:
        return
    terminalreporter.section(f"the {SHOWN} files that cost most")
    terminalreporter.write_line("  CPU s  wall s  tests  file")
    rows = [(_CPU[file], _WALL[file], _TESTS[file], file) for file, _ in _CPU.most_common(SHOWN)]
    rows.append((_CPU.total(), _WALL.total(), _TESTS.total(), f"all {len(_TESTS)} files"))
    for cpu, wall, tests, file in rows:
        terminalreporter.write_line(f"{cpu:7.1f} {wall:7.1f} {tests:6d}  {file}")
