"""`made_once`: workers of one run share what one of them makes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from once import made_once

if TYPE_CHECKING:
    from pathlib import Path


def factory(worker: Path) -> Any:
    """What stands for the factory of one worker."""
    worker.mkdir(exist_ok=True)
    return SimpleNamespace(getbasetemp=lambda: worker)


def test_workers_of_a_run_share_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    workers = [factory(tmp_path / f"gw{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda worker: made_once(worker, "shared", make), workers))
    assert set(found) == {tmp_path / "shared"}
    assert made == [tmp_path / "shared"]
    assert (tmp_path / "shared" / "file").read_text() == "whole"


def test_a_folder_that_could_not_be_filled_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="full"):
        made_once(factory(tmp_path), "shared", fail)
    found = made_once(factory(tmp_path), "shared", lambda folder: (folder / "whole").touch())
    assert [path.name for path in found.iterdir()] == ["whole"]
