"""Runs of edits that pile up: killed at any point, or shared, they end alike."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
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
from lmedit.pipeline import call_prepare
from lmedit.storage.tensors import Checkpoint
from lmedit.testing import Records, Texts
from lmedit.tiny import TEXTS, tiny_family
from lmedit_memit.remembering import forget

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmedit import Lm

pytestmark = pytest.mark.usefixtures("one_thread")

REGIMES = {
    "batched ultraedit": Regime("batched", (2, 6), batch=2),
    "sequential ultraedit": Regime("sequential", (1, 3)),
    "batch memit": Regime("batch", (2, 6)),
    "sequential ft": Regime("sequential", (1, 3)),
    "batch ft": Regime("batch", (2, 6)),
}
"""UltraEdit hands moments on. MEMIT makes a change of each size. FT's edits are added up."""
PARTS = {
    "batched ultraedit": 3,
    "sequential ultraedit": 3,
    "batch memit": 2,
    "sequential ft": 3,
    "batch ft": 6,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ultraedit": {"layers": [1, 2], "edit_rate": 0.01},
    "memit": {"layers": [1, 2], "steps": 2, "prefixes": []},
    "ft": {"layer": 2, "steps": 2},
}
TIMED = ("seconds", "mebibytes", "peak")


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_family("gpt2", torch.float32)


@pytest.fixture(scope="module")
def cases() -> CaseSet:
    return CaseSet("toy", "d" * 64, tuple(Records())[:6])


def editor_of(lm: Lm, method: str) -> Editor:
    loaded = load(method)
    options = build_options(loaded.method, OPTIONS[method], lm)
    if loaded.method.prepares_on is None:
        return Editor(loaded, lm, options, Prepared())
    with TemporaryDirectory() as folder:
        place = Checkpoint(Path(folder) / "c")
        return Editor(loaded, lm, options, call_prepare(loaded, lm, options, Texts(), place))


def run(lm: Lm, cases: CaseSet, folder: Path, kind: str) -> dict[str, Any]:
    """Each part of a pile may know what the earlier ones carry."""
    forget(lm)  # as a new process
    editor = editor_of(lm, kind.split()[1])
    scoring = Scoring(frozenset({"health"}), HeldOut(lm, TEXTS))
    return pile_up(lm, cases, [editor], folder, 0, scoring, REGIMES[kind]).finish()


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


@pytest.fixture(scope="module", params=REGIMES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(lm: Lm, cases: CaseSet, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The curve and the patches of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    curve = run(lm, cases, folder, kind)["curve"]
    assert len(patches(folder)) == PARTS[kind]
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
        "compute before",
        "compute behind",
        "save_patch behind",
        "store_result before",
        "store_result behind",
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    lm: Lm, cases: CaseSet, kind: str, whole: Any, tmp_path: Path, place: str, number: int
) -> None:
    together = kind == "batch ft"  # all six facts are one group
    place = place.replace("compute", "compute_together" if together else "compute_update")
    number = min(number, 1 if "together" in place else PARTS[kind])
    with pytest.MonkeyPatch.context() as patch:
        dies_at(place, number, patch)
        status = pid_ended(forked(lambda: run(lm, cases, tmp_path, kind)))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    again = run(lm, cases, tmp_path, kind)
    assert (timeless(again["curve"]), patches(tmp_path)) == whole
    assert lm.weights_digest() == lm.digest


def test_workers_share_a_run(
    lm: Lm, cases: CaseSet, kind: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is computed once, by one of them, and all end with the same curve."""
    log = tmp_path / "log"
    name = "compute_together" if kind == "batch ft" else "compute_update"
    original = getattr(piles, name)

    def told(*arguments: Any, **named: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return original(*arguments, **named)

    monkeypatch.setattr(piles, name, told)
    folder = tmp_path / "run"

    def work() -> None:
        assert timeless(run(lm, cases, folder, kind)["curve"]) == whole[0]

    children = [forked(work) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(pid_ended(child)) for child in children] == [0, 0, 0]
    assert patches(folder) == whole[1]
    assert len(log.read_text().split()) == (1 if kind == "batch ft" else PARTS[kind])
