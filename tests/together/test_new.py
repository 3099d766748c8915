"""`lmedit new`: the project that it writes passes its own tests and takes part at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from click.testing import Result
from packaging.requirements import Requirement

import lmedit as package
from lmedit.actions.scaffold import STANDS_FOR

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., Result]


def run(*command: object, folder: Path, path: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they complain of warm modules
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_method_passes_its_own_tests_and_is_compared(
    lmedit: Run, tmp_path: Path, model: Path, cases: Path, warm: tuple[str, ...]
) -> None:
    project, site = tmp_path / "lmedit-two-words", tmp_path / "site"
    written = lmedit("new", "two-words", "-O", project)
    assert written.exit_code == 0, written.stderr
    files = [path for path in project.rglob("*") if path.is_file()]
    assert sorted(written.stdout.splitlines()) == sorted(str(path) for path in files)
    assert not [f for f in files if STANDS_FOR in str(f) + f.read_text().lower()]
    path = os.pathsep.join(sys.path)
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        site,
        project,
        folder=tmp_path,
        path=path,
    )
    path = f"{site}{os.pathsep}{path}"
    said = run(*warm, "-m", "pytest", "-q", "-W", "error", folder=project, path=path)
    assert "16 passed" in said
    command = (*warm, "-c", "from lmedit.cli import main; main()")
    run(*command, "check", "two-words", "-m", model, folder=tmp_path, path=path)
    printed = run(
        *command,
        "compare",
        "two-words",
        "--cases",
        cases,
        "-m",
        model,
        "--json",
        "-o",
        "length",
        "0.5",
        folder=tmp_path,
        path=path,
    )
    base, new = json.loads(printed)["rows"]
    assert (new["method"], new["version"], new["n_failed"]) == ("two-words", "0.1.0", 0)
    assert new["EM"] != base["EM"]


def test_it_needs_a_core_like_this_one(lmedit: Run) -> None:
    import tomllib
    from pathlib import Path

    assert lmedit("new", "mine").exit_code == 0
    meta = tomllib.loads((Path("lmedit-mine") / "pyproject.toml").read_text())["project"]
    (core,) = (r for r in map(Requirement, meta["dependencies"]) if r.name == "lmedit")
    assert core.specifier.contains(package.__version__)
    assert not core.specifier.contains("99")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Mine", "'Mine' is not a valid name for a method; use lower case"),
        ("my_own", "'my_own' is not a valid name"),
        ("../mine", "'../mine' is not a valid name"),
        ("a--b", "'a--b' is not a valid name"),
        ("1st", "'1st' is not a valid name"),
        ("rome", "the name 'rome' belongs to lmedit-rome"),
        ("base", "the name 'base' belongs to the core"),
    ],
)
def test_a_bad_name_is_a_clear_error(lmedit: Run, tmp_path: Path, name: str, reason: str) -> None:
    done = lmedit("new", name, "-O", tmp_path / "out")
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(lmedit: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = lmedit("new", "mine", "-O", tmp_path / "out")
    assert done.exit_code == 1
    assert "out exists; give another folder with -O" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_leaves_nothing(lmedit: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = lmedit("new", "mine", "-O", tmp_path / "file" / "out")
    assert done.exit_code == 1
    assert "cannot write" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if "mine" in p.name or "out" in p.name) == []
