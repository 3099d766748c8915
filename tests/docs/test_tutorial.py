"""Every block of the tutorial runs, in its order, as a reader would type it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from warm import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "writing-a-method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (.+?) -->\n)?```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def blocks(language: str, mark: str) -> list[tuple[str, str]]:
    """What stands behind the mark, and the block's text."""
    return [
        (said.removeprefix(mark).lstrip(": "), text)
        for said, lang, text in BLOCKS
        if lang == language and said.startswith(mark) and bool(said) == bool(mark)
    ]


def script(folder: Path, name: str, *command: object) -> None:
    file = folder / name
    file.write_text("#!/bin/sh\nexec " + " ".join(map(str, command)) + "\n")
    file.chmod(0o755)


@pytest.fixture(scope="module")
def author(
    tmp_path_factory: pytest.TempPathFactory, demo_statistics: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
    """An author's folder, with a fresh environment that sees the packages of this one.

    Its pip installs without a network: what a plugin depends on is there. Its `lmedit` begins with
    torch imported.
    """
    folder = tmp_path_factory.mktemp("author")
    shutil.copytree(demo_statistics, folder / "cache")
    own = folder / "venv"
    venv.create(own, with_pip=False)
    (site,) = own.glob("lib/python*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (site / "of_this_one.pth").write_text(line)
    python, bin_ = own / "bin" / "python", own / "bin"
    script(
        bin_,
        "pip",
        sys.executable,
        "-m pip --python",
        python,
        '"$@"',
        "-q --no-deps --no-build-isolation --no-index",
    )
    (folder / "docs").symlink_to(ROOT / "docs")
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    found = [
        part
        for part in sys.path
        if (Path(part) / "lmedit").is_dir() or any(Path(part).glob("lmedit_*/__init__.py"))
    ]
    environment = {
        **os.environ,
        "PATH": path,
        "LMEDIT_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(found),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with interpreter(python, environment) as warm:
        script(bin_, "lmedit", *warm, "-c", "'from lmedit.cli import main; main()'", '"$@"')
        yield folder, environment


@pytest.fixture(scope="module")
def typed(author: tuple[Path, dict[str, str]]) -> str:
    """What the console blocks print, one after the other in one shell."""
    folder, environment = author
    lines = "".join(text for _, text in blocks("console", ""))
    done = subprocess.run(
        ["bash", "-ex"],
        input=lines,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_run_and_print_what_the_page_says(
    typed: str, author: tuple[Path, dict[str, str]]
) -> None:
    for _, text in blocks("text", "printed"):
        assert text in typed
    assert "16 passed" in typed
    compared = re.findall(r"^(\w+)(?: \(untuned\))? +3 +(\d+) ", typed, re.MULTILINE)
    assert {name for name, _ in compared} == {"base", "rome", "nudge", "step", "alphaedit"}
    assert {failed for _, failed in compared} == {"0"}
    project = author[0] / "lmedit-step"
    assert (project / "pyproject.toml").is_file()


@pytest.mark.slow
def test_what_the_page_shows_of_files_is_in_them(
    typed: str, author: tuple[Path, dict[str, str]]
) -> None:
    shown = [*blocks("python", "part of"), *blocks("toml", "part of")]
    assert len(shown) == 5
    for name, text in shown:
        assert text in (author[0] / name).read_text(encoding="utf-8"), name


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ((_, code),) = blocks("python", "")
    exec(compile(code, "writing-a-method.md", "exec"), {})


def test_no_block_is_left_out() -> None:
    kinds = {(said.partition(":")[0], language) for said, language, _ in BLOCKS}
    assert kinds == {
        ("file", "python"),
        ("part of", "python"),
        ("part of", "toml"),
        ("printed", "text"),
        ("", "console"),
        ("", "python"),
    }
