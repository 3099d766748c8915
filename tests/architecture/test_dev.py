"""`dev.py`: it says what it does, and it runs the tests that it is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed_tests import EVERYTHING, Workspace, changed_files, choose

import lmedit

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def loaded() -> Any:
    """Import `dev.py` as a module."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dev = loaded()
PYTEST = ["python", "-m", "pytest", "--timeout=600"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Call `dev.py` with some arguments; return the commands that it would run."""

    def call(*arguments: str) -> list[list[str]]:
        commands: list[list[str]] = []
        monkeypatch.setattr(dev, "set_up", lambda *_: None)
        monkeypatch.setattr(
            dev, "run", lambda *parts, **_: commands.append([str(part) for part in parts])
        )
        monkeypatch.setattr(dev, "beside", lambda *parts: nullcontext(commands.append([*parts])))
        monkeypatch.setattr(sys, "argv", ["dev.py", *arguments])
        dev.main()
        return commands

    return call


# ---- what it says


def test_the_list_has_a_line_for_each_task(
    ran: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("--list") == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(dev.TASKS)
    assert {
        "test",
        "check",
        "demo",
        "real",
        "play",
        "bench",
        "docs",
        "isolated",
        "attack",
        "families",
        "rooms",
    } == set(dev.TASKS)
    assert all(len(line) < 100 and line.endswith(".") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a task; python3 dev.py --list shows them"),
        (["demo", "--only", "rome"], "--only, --changed and --oldest belong to the task test"),
        (["test", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_a_wrong_call_is_a_clear_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        dev.read(arguments)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


# ---- what it runs


def test_the_whole_test_checks_first_and_runs_in_parallel(
    ran: Callable[..., list[list[str]]],
) -> None:
    *checks, compiling, tests = ran("test", "--", "-k", "rome")
    assert compiling == ["python", "-m", "pytest", "--collect-only", "-qqq"]
    assert [check[0] for check in checks] == ["mypy", "ruff", "ruff", "lint-imports"]
    assert sorted(ran("check")) == sorted(checks)
    assert tests[:6] == [*PYTEST, "-n", "auto"]
    assert tests[-2:] == ["-k", "rome"]


def test_what_runs_beside_a_block_ends_with_it_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "done"
    with dev.beside(sys.executable, "-c", f"open({str(done)!r}, 'w').close(); print('right')"):
        pass
    assert done.exists()
    assert capsys.readouterr().out == "right\n"
    with (
        pytest.raises(SystemExit) as left,
        dev.beside(sys.executable, "-c", "print('wrong'); raise SystemExit(3)"),
    ):
        pass
    assert (left.value.code, capsys.readouterr().out) == (3, "wrong\n")
    started = time.monotonic()
    with (
        pytest.raises(SystemExit),
        dev.beside(sys.executable, "-c", "import time; time.sleep(60)"),
    ):
        sys.exit(1)
    assert time.monotonic() - started < 50


@pytest.mark.parametrize("name", ["rome", "ft", "kn", "ke", "mend"])
def test_only_a_plugin_runs_its_tests_alone(ran: Callable[..., list[list[str]]], name: str) -> None:
    assert ran("test", "--only", name) == [[*PYTEST, f"plugins/{name}/tests"]]


def test_real_keeps_stdout_for_the_comparison(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = "import sys; print(sys.argv[1])"
    call = dev.run
    monkeypatch.setattr(dev, "set_up", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["dev.py", "real", "--", "--json"])
    monkeypatch.setattr(
        dev, "run", lambda *parts, **more: call(sys.executable, "-c", shown, parts[1], **more)
    )
    dev.main()
    captured = capfd.readouterr()
    assert captured.out.split() == ["compare"]
    assert captured.err.split() == ["models"]


def test_only_takes_folders_of_tests_and_several_names(
    ran: Callable[..., list[list[str]]],
) -> None:
    names = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert {"core", "docs", "together", "architecture"} <= names
    assert names <= set(dev.suites())
    ((*start, first, second),) = ran("test", "--only", "docs", "core")
    assert start == [*PYTEST, "-n", "auto", "--dist", "worksteal"]
    assert (first, second) == ("tests/docs", "tests/core")
    assert all((ROOT / folder).is_dir() for folder in dev.suites().values())


def test_every_test_file_belongs_to_a_name() -> None:
    folders = {str(Path(test).parent) for test in Workspace().test_files}
    assert folders == set(dev.suites().values())


def test_changed_runs_what_the_script_chose(
    ran: Callable[..., list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def chosen(place: Any, since: str) -> list[str]:
        asked.append(since)
        return ["tests/core/test_cases.py"] if since != "same" else []

    monkeypatch.setattr(dev, "changed_tests", chosen)
    command = [*PYTEST, "tests/core/test_cases.py"]
    assert ran("test", "--changed") == [command]
    assert "tests/core/test_cases.py" in capsys.readouterr().err
    assert ran("test", "--changed", "main", "--", "-x") == [[*command, "-x"]]
    assert ran("test", "--changed", "same") == []
    assert asked == ["", "main", "same"]


def test_the_script_answers_in_a_process_of_its_own() -> None:
    here = dev.Place(Path(sys.prefix))
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
    if head.returncode:
        pytest.skip("this is no git checkout")
    found = dev.changed_tests(here, "HEAD")
    assert found == choose(changed_files("HEAD"), Workspace(homes=lmedit._HOME_OF))[0]


def test_an_environment_is_made_anew_when_a_pyproject_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "core/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    before = dev.install_digest(dev.NEWEST)
    assert dev.install_digest(dev.NEWEST) == before
    (tmp_path / "core" / "pyproject.toml").write_text("b")
    assert dev.install_digest(dev.NEWEST) != before


def test_a_user_task_installs_no_tools_and_test_adds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[str] = []

    def run(*parts: object, **_: object) -> None:
        groups.extend(str(parts[i + 1]) for i, part in enumerate(parts) if part == "--group")

    place = dev.Place(tmp_path)
    place.programs.mkdir()
    (place.programs / "python").touch()
    monkeypatch.setattr(dev, "NEWEST", place)
    monkeypatch.setattr(dev, "run", run)
    monkeypatch.setattr(dev, "beside", lambda *_: nullcontext())
    for task in ("real", "demo", "test", "demo", "check"):
        monkeypatch.setattr(sys, "argv", ["dev.py", task])
        dev.main()
    assert groups == ["use", "dev"]


# ---- the tests of what changed


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace(homes=lmedit._HOME_OF)


def chosen(workspace: Workspace, *paths: str) -> set[str]:
    return set(choose(list(paths), workspace)[0])


def test_a_test_file_chooses_itself(workspace: Workspace) -> None:
    path = "plugins/ft/tests/test_ft.py"
    assert chosen(workspace, path) == {path}
    assert chosen(workspace, "plugins/ft/tests/test_that_was_deleted.py") == set()


def test_an_equation_chooses_its_plugin_and_those_that_name_the_method(
    workspace: Workspace,
) -> None:
    found = chosen(workspace, "plugins/mend/src/lmedit_mend/equations.py")
    assert {test for test in workspace.test_files if test.startswith("plugins/mend/")} <= found
    assert {"tests/together/test_trained_editors.py", "tests/docs/test_consoles.py"} <= found
    assert not [test for test in found if test.startswith(("plugins/rome/", "plugins/ft/"))]
    assert "tests/core/test_tokens.py" not in found


def test_a_module_of_the_core_chooses_those_that_import_it_through_others(
    workspace: Workspace,
) -> None:
    found = chosen(workspace, "core/src/lmedit/metrics/bootstrap.py")
    assert "tests/core/test_bootstrap.py" in found  # itself imports it
    assert "tests/core/test_compare.py" in found  # through lmedit.compare
    assert "tests/together/test_python.py" in found  # through lmedit.api, a public name's home
    assert "tests/together/test_commands.py" in found  # through conftest.py and the command line
    assert "tests/core/test_tokens.py" not in found
    theirs = [test for test in found if test.startswith("plugins/")]
    others = [test for test in theirs if not {"play", "ray"} & set(test.split("/"))]
    assert others == []  # those two call what commands call


def test_helpers_and_conftests_choose_those_that_use_them(workspace: Workspace) -> None:
    damaged = chosen(workspace, "tests/together/damage.py")
    assert "tests/together/test_damaged_files.py" in damaged
    assert len(damaged) < 5
    core = {test for test in workspace.test_files if test.startswith("tests/core/")}
    assert chosen(workspace, "tests/core/conftest.py") == core


def test_documents_and_scripts_choose_their_tests(workspace: Workspace) -> None:
    documents = {test for test in workspace.test_files if test.startswith("tests/docs/")}
    for path in ("README.md", "docs/hooks.md", "plugins/kn/README.md", "docs/build_site.py"):
        assert chosen(workspace, path) == documents
    assert "tests/together/test_benchmarks.py" in chosen(workspace, "benchmarks/all.py")
    assert "tests/architecture/test_dev.py" in chosen(workspace, "dev.py")


@pytest.mark.parametrize(
    "path",
    [
        "pyproject.toml",
        "constraints.txt",
        "core/pyproject.toml",
        "worlds/demo/src/lmedit_demo/text.txt",
        "core/src/lmedit/that_was_deleted.py",
        "core/src/lmedit/py.typed",
        "something/new.bin",
    ],
)
def test_what_is_unsure_chooses_everything(workspace: Workspace, path: str) -> None:
    chosen_tests, (line,) = choose(["README.md", path], workspace)
    assert chosen_tests == list(EVERYTHING)
    assert line == f"{path}: every test can depend on it"


def test_each_change_has_a_line(workspace: Workspace) -> None:
    _, lines = choose(["plugins/ft/tests/test_ft.py", "dev.py"], workspace)
    assert lines[0] == "plugins/ft/tests/test_ft.py: 1 test file(s)"
    assert lines[1].startswith("dev.py: ")


def test_changes_are_counted_from_where_the_branch_left(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", *who, *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)

    def write(name: str, text: str = "new") -> None:
        (tmp_path / name).write_text(text)

    git("init", "-q", "-b", "main")
    for name in ("kept", "edited", "gone"):
        write(name, "old")
    git("add", ".")
    git("commit", "-q", "-m", "1")
    git("checkout", "-q", "-b", "mine")
    write("edited")
    git("commit", "-q", "-a", "-m", "2")
    assert changed_files(root=tmp_path) == ["edited"]
    (tmp_path / "gone").rename(tmp_path / "two words")
    assert changed_files(root=tmp_path) == ["edited", "gone", "two words"]
    assert changed_files("HEAD", root=tmp_path) == ["gone", "two words"]
    git("checkout", "-q", "main")
    write("kept")
    git("commit", "-q", "-a", "-m", "3")
    git("checkout", "-q", "mine")
    assert "kept" not in changed_files(root=tmp_path)
    with pytest.raises(SystemExit, match="nowhere is no commit"):
        changed_files("nowhere", root=tmp_path)
