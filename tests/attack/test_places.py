"""Only what lmedit wrote is replaced, changes are made under a lock, and names are unique."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import all_ended, ended, started
from click.testing import CliRunner

from lmedit import LowRank, Update
from lmedit.actions.edit import _slug
from lmedit.api.editors import editor
from lmedit.cli import main
from lmedit.compare.store import RunStore
from lmedit.edits.ledger import Ledger, base_of
from lmedit.edits.model_folders import EditedModel, write_folder
from lmedit.edits.patches import save_patch
from lmedit.errors import ArtifactError, RunError
from lmedit.storage.atomic import new_folder, write_whole
from lmedit.storage.cache import cache_folder
from lmedit.storage.json_files import write_json
from lmedit.storage.locks import being_changed, lock_by_name
from lmedit.storage.ours import check_place
from lmedit.types import Request

if TYPE_CHECKING:
    import click

    from lmedit import Lm


def edited(lm: Lm) -> EditedModel:
    return EditedModel(lm, Ledger(lm), {"name": lm.name, "digest": lm.digest})


def test_files_of_others_in_a_model_folder_stay(lm: Lm, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(model := edited(lm), folder)
    (folder / "NOTES.md").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "a.json").write_text("{}")
    (folder / "README.json").write_text("[1]")
    link = tmp_path / "link"
    link.symlink_to(folder)
    write_folder(model, link)
    assert link.is_symlink()
    assert (folder / "NOTES.md").read_text() == "mine"
    assert (folder / "more" / "a.json").read_text() == "{}"
    assert (folder / "README.json").read_text() == "[1]"


def test_an_output_replaces_only_what_lmedit_wrote(lm: Lm, tmp_path: Path) -> None:
    site = lm.mlp_out(0)
    rows, columns = lm.weight(site).shape
    import torch

    update = Update({site: LowRank(torch.ones(rows, 1), torch.ones(1, columns))})
    facts = {"model": base_of(lm, update)}
    write_folder(edited(lm), tmp_path / "model")
    (tmp_path / "notes.md").write_text("I like lmedit")
    (tmp_path / "dir").mkdir()
    for name in ("notes.md", "model/model.safetensors", "model/config.json", "dir", ""):
        path = tmp_path / name if name else Path()
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ArtifactError, match=r"exists and|is empty"):
            save_patch(path, update, facts)
        assert before == (path.read_bytes() if path.is_file() else b"")
    with pytest.raises(ArtifactError, match="is not a file"):
        save_patch(Path("/dev/null"), update, facts)
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "true.safetensors")
    for _ in range(2):
        save_patch(link, update, facts)
    assert link.is_symlink()


def test_the_options_file_of_tune_and_a_page_may_be_replaced(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", {"ft": {"options": {}, "evidence": {}}})
    check_place(tmp_path / "t.json")
    (tmp_path / "p.html").write_text("<meta name='generator' content='lmedit'>")
    check_place(tmp_path / "p.html")
    write_json(tmp_path / "other.json", {"ft": 1})
    with pytest.raises(ArtifactError, match="did not write it"):
        check_place(tmp_path / "other.json")


def test_a_run_is_not_started_over_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunError, match="would be replaced"):
        RunStore(tmp_path)


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with being_changed(path):
            found = json.loads(path.read_text()) if path.exists() else 0
            write_json(path, found + 1)


def run_all(target: Any, *arguments: Any, count: int = 4) -> list[int | None]:
    return all_ended([started(target, *arguments) for _ in range(count)])


def test_changes_of_one_file_by_four_processes_are_all_kept(tmp_path: Path) -> None:
    assert run_all(count_up, tmp_path / "n.json", 15) == [0] * 4
    assert json.loads((tmp_path / "n.json").read_text()) == 60


def count_up_by_name(path: Path, times: int) -> None:
    for _ in range(times):
        lock = lock_by_name(path.parent)
        assert lock is not None
        found = json.loads(path.read_text()) if path.exists() else 0
        time.sleep(0.001)
        path.write_text(json.dumps(found + 1))
        lock.release()


def test_a_lock_for_systems_that_cannot_lock_a_folder_is_one(tmp_path: Path) -> None:
    assert run_all(count_up_by_name, tmp_path / "n.json", 10) == [0] * 4
    assert json.loads((tmp_path / "n.json").read_text()) == 40
    held = lock_by_name(tmp_path)
    assert held is not None
    assert lock_by_name(tmp_path / ".", wait=False) is None
    held.release()
    again = lock_by_name(tmp_path, wait=False)
    assert again is not None
    again.release()
    with pytest.raises(FileNotFoundError):
        lock_by_name(tmp_path / "none")
    assert os.listdir(tmp_path) == ["n.json"]


def write_often(folder: Path) -> None:
    for number in range(40):
        with write_whole(folder / f"{number % 3}") as part:
            part.write_text("whole")


def test_no_concurrent_write_is_refused(tmp_path: Path) -> None:
    assert run_all(write_often, tmp_path) == [0] * 4
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


def exchange_often(lm: Lm, folder: Path, until: Path) -> None:
    model = edited(lm)
    while not until.exists():
        write_folder(model, folder)


def test_a_reader_never_sees_half_an_exchange(lm: Lm, tmp_path: Path) -> None:
    from lmedit.edits.model_folders import open_folder

    folder, end = tmp_path / "model", tmp_path / "end"
    write_folder(edited(lm), folder)
    writer = started(exchange_often, lm, folder, end)
    try:
        for _ in range(4):
            assert open_folder(str(folder)).lm.weights_digest() == lm.digest
    finally:
        end.touch()
        code = ended(writer)
    assert code == 0


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    found = {new_folder(tmp_path / "runs", "2026") for _ in range(3)}
    assert {folder.name for folder in found} == {"2026", "2026-2", "2026-3"}


def test_two_facts_about_one_subject_have_two_patches(lm: Lm) -> None:
    method = editor("ft", lm, layer=1)
    facts = [
        Request(prompt=prompt, subject="Eve", target_new="Rome")
        for prompt in ("{} lives in", "{} died in")
    ]
    assert len({_slug(method, fact) for fact in facts}) == 2
    assert _slug(method, facts[0]) == _slug(method, facts[0])
    assert len({_slug(method, fact) for fact in facts} | {_slug(editor("ft", lm), facts[0])}) == 3


def test_a_home_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LMEDIT_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"


def test_empty_and_long_names_are_wrong_usage() -> None:
    for name in ("", "x" * 300):
        for command in (["log", name], ["apply", "a", "-O", name], ["report", name]):
            assert CliRunner().invoke(main, command).exit_code == 2


def test_a_killed_new_leaves_nothing_that_stays(tmp_path: Path) -> None:
    from lmedit.actions import scaffold

    def slowly(folder: Path) -> None:
        scaffold._rename = lambda text, _: time.sleep(0.05) or text  # type: ignore[assignment]
        scaffold.write_project("later", folder)

    process = started(slowly, tmp_path / "new")
    time.sleep(0.4)
    os.kill(process.pid or 0, signal.SIGKILL)
    ended(process)
    scaffold.write_project("later", tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]


def outputs() -> list[tuple[list[str], str]]:
    """Every command with every option that names a file or folder to write."""
    found: list[tuple[list[str], str]] = []

    def walk(command: click.Command, names: list[str]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*names, name])
        for parameter in command.params:
            flags = {"--out", "--run", "--html", "--plot"}.intersection(parameter.opts)
            found.extend((names, flag) for flag in flags)

    walk(main, [])
    return found


@pytest.mark.parametrize(("command", "flag"), outputs())
def test_a_place_that_cannot_be_written_is_refused_at_once(
    command: list[str], flag: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(main, [*command, flag, str(tmp_path / "file" / "x")])
    assert result.exit_code == 1  # not 2: the missing arguments are not even looked at
    assert result.stderr.count("\n") == 1
    assert "Not a directory; choose another place" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
