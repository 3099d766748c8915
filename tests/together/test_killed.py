"""Processes killed while they write: what is there is the old or the new, whole and usable."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from children import pid_ended
from small_world import save_model
from tqdm.auto import tqdm

from lmedit import Dense, LowRank, Site, Update, load_patch, save_patch
from lmedit.edits.ledger import base_of
from lmedit.edits.model_folders import EditedModel, open_folder, verify_folder, write_folder
from lmedit.storage import atomic as parts
from lmedit.storage.atomic import PREFIX, part_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("one_thread")

KILLS = 40


def killed_while(work: Callable[[], object], after: float) -> None:
    """Do *work* again and again in another process, and kill that after so many seconds."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            tqdm.set_lock(threading.RLock())  # its own is shared with us, and would die held
            os.write(begun, b"!")
            while True:
                work()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"!"
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    status = pid_ended(child)
    os.close(ready)
    os.close(begun)
    assert os.WIFSIGNALED(status), "it ended by itself, so its work failed"


def content(folder: Path) -> str:
    """A digest of all files in *folder*, and of their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in files]
    return "\n".join(told)


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(PREFIX)]


@pytest.fixture
def two(tmp_path: Path) -> tuple[EditedModel, EditedModel]:
    """One model with one edit in it, and with two."""
    folder, found = save_model(tmp_path / "model", seed=0), []
    for edits in (1, 2):
        model = open_folder(str(folder))
        for number in range(edits):
            random = torch.Generator().manual_seed(number)
            change = LowRank(
                torch.randn(16, 1, generator=random), torch.randn(1, 64, generator=random)
            )
            update = Update({model.lm.mlp_out(number): change})
            model.ledger.keep(update, {"model": base_of(model.lm, update)})
        found.append(model)
    return found[0], found[1]


def test_a_child_that_dies_with_the_lock_of_bars_stops_no_other_bar() -> None:
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        tqdm.get_lock().acquire(blocking=True)
        os.write(begun, b"!")
        time.sleep(60)
    assert os.read(ready, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    pid_ended(child)
    assert tqdm.get_lock().acquire(blocking=False)
    tqdm.get_lock().release()


@pytest.mark.slow
def test_a_killed_write_of_a_folder_leaves_the_old_or_the_new(
    two: tuple[EditedModel, EditedModel], tmp_path: Path
) -> None:
    out, draw = tmp_path / "place" / "edited", Random(0)
    known = {}
    for model in (*two[::-1], two[0]):
        started = time.perf_counter()
        write_folder(model, out)
        seconds = time.perf_counter() - started
        known[content(out)] = model

    def write_both() -> None:
        for model in two:
            write_folder(model, out)

    left = interrupted = 0
    for _ in range(KILLS):
        killed_while(write_both, after=draw.random() * 4 * seconds)
        model = known[content(out)]
        assert verify_folder(open_folder(str(out))) == model.base["digest"]
        interrupted += bool(hidden(out.parent))
        left = max(left, len(hidden(out.parent)))
    assert interrupted > KILLS // 4, "hardly one was killed while it wrote"
    assert left == 1, "what one left, the next one takes away"
    write_folder(two[0], out)
    assert [path.name for path in out.parent.iterdir()] == ["edited"]


@pytest.mark.slow
def test_a_killed_write_of_a_patch_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path, draw = tmp_path / "edit.safetensors", Random(1)
    updates = [Update({Site("w"): Dense(torch.full((400, 400), float(n)))}) for n in (1, 2)]

    def write_both() -> None:
        for update in updates:
            save_patch(path, update, {"which": 0})

    write_both()
    interrupted = 0
    for _ in range(KILLS):
        killed_while(write_both, after=draw.random() / 50)
        values = load_patch(path)[0].deltas[Site("w")].dense()
        assert values.unique().tolist() in ([1.0], [2.0])
        interrupted += bool(hidden(tmp_path))
        assert len(hidden(tmp_path)) <= 1
    assert interrupted > KILLS // 4
    write_both()
    assert [each for each in tmp_path.iterdir() if each.name != "here"] == [path]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        with part_of(tmp_path / "a") as part:
            part.write_text("half")
            os.write(begun, b"!")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"!"
        for name in ("a", "b"):
            with part_of(tmp_path / name) as part:
                part.write_text("whole")
                part.rename(tmp_path / name)
        (folder,) = hidden(tmp_path)
        assert (folder / "part").read_text() == "half"
    finally:
        os.kill(child, signal.SIGKILL)
        pid_ended(child)
    with part_of(tmp_path / "c"):
        assert not folder.exists()
    assert hidden(tmp_path) == []


def test_a_folder_that_a_sweep_took_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = parts.tempfile.mkdtemp
    taken: list[Path] = []

    def swept(**flags: Any) -> str:
        folder = made(**flags)
        taken.append(Path(folder))
        taken[-1].rmdir()
        return folder

    monkeypatch.setattr(parts.tempfile, "mkdtemp", swept)
    with part_of(tmp_path / "file") as part:
        part.write_text("whole")
        part.replace(tmp_path / "file")
    assert taken
    assert (tmp_path / "file").read_text() == "whole"
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_folder_that_is_removed_while_its_lock_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove it at any step, because it looks like one without a writer."""
    real, tried = parts.lock_folder, []

    def lock(folder: Path, **options: Any) -> Any:
        tried.append(folder)
        if len(tried) == 1:
            shutil.rmtree(folder)
        return real(folder, **options)

    monkeypatch.setattr(parts, "lock_folder", lock)
    with part_of(tmp_path / "file") as part:
        part.write_text("whole")
        part.rename(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"
    assert len(tried) == 2
    assert hidden(tmp_path) == []
