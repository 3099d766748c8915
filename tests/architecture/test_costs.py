"""The table at the end of a run: what each test file cost."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def costs() -> Any:
    """The root's `conftest.py`, imported anew, with empty sums."""
    spec = importlib.util.spec_from_file_location("costs", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(costs: Any, files: dict[str, tuple[float, float]]) -> list[str]:
    """The lines of the table for files with their seconds of CPU and wall time."""
    for file, (cpu, wall) in files.items():
        for when in ("setup", "call", "teardown"):
            more = {"cpu": cpu} if when == "teardown" else {}
            costs.pytest_runtest_logreport(
                SimpleNamespace(nodeid=f"{file}::test", duration=wall / 3, when=when, **more)
            )
    lines: list[str] = []
    costs.pytest_terminal_summary(SimpleNamespace(section=lines.append, write_line=lines.append))
    return lines


def test_the_files_that_cost_most_are_printed(costs: Any) -> None:
    files = {f"test_{number}.py": (float(number), number + 0.5) for number in range(20)}
    section, head, *rows, whole = told(costs, files)
    assert section == "the 15 files that cost most"
    assert head.split() == ["CPU", "s", "wall", "s", "tests", "file"]
    assert rows[0].split() == ["19.0", "19.5", "1", "test_19.py"]
    assert [row.split()[3] for row in rows] == [f"test_{n}.py" for n in range(19, 4, -1)]
    assert whole.split() == ["190.0", "200.0", "20", "all", "20", "files"]


def test_a_few_files_need_no_table(costs: Any) -> None:
    assert told(costs, {"test_a.py": (1.0, 1.0)}) == []


def test_the_seconds_of_children_count_while_they_run_and_after(costs: Any) -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass\ninput()"
    before, until = costs.cpu_seconds(), time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE) as child:
        while sys.platform == "linux" and costs.cpu_seconds() - before < 0.5:
            assert time.monotonic() < until
            time.sleep(0.05)
        child.communicate(b"\n", timeout=60)
    assert costs.cpu_seconds() - before >= 0.5


@pytest.mark.parametrize(
    ("processes", "wanted"),
    [("1", "bdfacegh"), ("2", "bfacdegh"), ("3", "badcefgh"), ("9", "bdfacegh")],
)
def test_each_process_begins_with_files_with_slow_tests(
    costs: Any, monkeypatch: pytest.MonkeyPatch, processes: str, wanted: str
) -> None:
    def item(file: str, slow: bool) -> Any:
        mark = object() if slow else None
        return SimpleNamespace(path=file, get_closest_marker=lambda _: mark)

    monkeypatch.setenv(costs.PROCESSES, processes)
    items = [item(file, file in "bdf") for file in "abcdefgh"]
    costs.pytest_collection_modifyitems(items)
    assert "".join(each.path for each in items) == wanted


def test_two_processes_have_equal_parts(costs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no test is lost, and the tests of a file stay together."""
    mark = object()
    items = [
        SimpleNamespace(
            path=number // 4, get_closest_marker=lambda _, n=number: mark if n % 8 == 0 else None
        )
        for number in range(40)
    ]
    monkeypatch.setenv(costs.PROCESSES, "2")
    ordered: list[Any] = [*items]
    costs.pytest_collection_modifyitems(ordered)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    parts = ordered[:20], ordered[20:]
    assert [list(dict.fromkeys(each.path for each in part)) for part in parts] == [
        [0, 4, 8, 1, 3],
        [2, 6, 5, 7, 9],
    ]
