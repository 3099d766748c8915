"""Batched runs of a method with memory: killed at any point, or shared, they end alike."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from children import pid_ended
from tqdm.auto import tqdm

from lmedit import Editor, Prepared, build_options, load
from lmedit.cases import CaseSet
from lmedit.compare import piles
from lmedit.compare.regimes import Regime, pile_up
from lmedit.compare.scoring import Scoring
from lmedit.metrics.health import HeldOut
from lmedit.testing import Records
from lmedit.tiny import TEXTS, tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmedit import Lm

pytestmark = pytest.mark.usefixtures("one_thread")

REGIME = Regime("batched", (2, 6), batch=2)
TIMED = ("seconds", "mebibytes", "peak")


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_family("gpt2", torch.float32)


@pytest.fixture(scope="module")
def cases() -> CaseSet:
    return CaseSet("toy", "d" * 64, tuple(Records())[:6])


def run(lm: Lm, cases: CaseSet, folder: Path) -> dict[str, Any]:
    """UltraEdit, three parts of two facts; each part knows the moments of the earlier ones."""
    loaded = load("ultraedit")
    options = build_options(loaded.method, {"layers": [1, 2], "edit_rate": 0.01}, lm)
    editor = Editor(loaded, lm, options, Prepared())
    scoring = Scoring(frozenset({"health"}), HeldOut(lm, TEXTS))
    return pile_up(lm, cases, [editor], folder, 0, scoring, REGIME).finish()


def timeless(value: Any) -> Any:
    """*value* without times and memory."""
    if isinstance(value, dict):
        return {
            name: timeless(each)
            for name, each in value.items()
            if not any(part in name for part in TIMED)
        }
    return [timeless(each) for each in value] if isinstance(value, list) else value


def patches(folder: Path) -> dict[str, str]:
    """The digest of each patch of a run, by the name of its file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / piles.PATCHES).iterdir()
    }


def forked(work: Callable[[], object]) -> int:
    """Do *work* in another process; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tqdm.set_lock(threading.RLock())  # its own is shared with us, and would die held
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def kill_me(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(lm: Lm, cases: CaseSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an undisturbed run gives: its curve, and its patches."""
    folder = tmp_path_factory.mktemp("whole")
    curve = run(lm, cases, folder)["curve"]
    assert len(patches(folder)) == 3
    return timeless(curve), patches(folder)


def dies_at(place: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies at call *number* of `piles`'s function *place*: before it, or behind it."""
    name, _, when = place.partition(" ")
    original, calls = getattr(piles, name), [0]

    def work(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and when == "before":
            kill_me()
        found = original(*arguments, **named)
        if calls[0] == number:
            kill_me()
        return found

    monkeypatch.setattr(piles, name, work)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    "place",
    [
        "compute_update before",
        "compute_update behind",
        "save_patch behind",
        "store_result before",
        "store_result behind",
    ],
)
def test_a_killed_batched_run_goes_on_to_the_same_bytes(
    lm: Lm, cases: CaseSet, whole: Any, tmp_path: Path, place: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dies_at(place, number, patch)
        status = pid_ended(forked(lambda: run(lm, cases, tmp_path)))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    again = run(lm, cases, tmp_path)
    assert (timeless(again["curve"]), patches(tmp_path)) == whole
    assert lm.weights_digest() == lm.digest


def test_workers_share_a_batched_run(
    lm: Lm, cases: CaseSet, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is computed once, by one of them, and all end with the same curve."""
    log = tmp_path / "log"
    original = piles.compute_update

    def told(*arguments: Any, **named: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return original(*arguments, **named)

    monkeypatch.setattr(piles, "compute_update", told)
    folder = tmp_path / "run"

    def work() -> None:
        assert timeless(run(lm, cases, folder)["curve"]) == whole[0]

    children = [forked(work) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(pid_ended(child)) for child in children] == [0, 0, 0]
    assert patches(folder) == whole[1]
    assert len(log.read_text().split()) == 3
