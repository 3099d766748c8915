#!/usr/bin/env python3
"""Set up and run a task: `python3 dev.py demo|test|check|bench|docs|isolated`.

It needs python3, pip and venv alone. It makes `.venv` beside this file, installs the core, all
plugins and the demo from their folders, with the versions of `constraints.txt`, and runs the
task. A second call installs nothing unless a `pyproject.toml` or the constraints changed.
`test --oldest` does so in `.venv-oldest`, with the oldest versions that are supported
(`constraints-oldest.txt`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST = "--oldest" in sys.argv
VENV = ROOT / (".venv-oldest" if OLDEST else ".venv")
CONSTRAINTS = "constraints-oldest.txt" if OLDEST else "constraints.txt"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "lmedit-installed"


def members() -> list[Path]:
    """The folders of all distributions, the core first."""
    return [ROOT / "core", *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("worlds/*"))]


def wanted() -> str:
    """A digest of all that decides what is installed."""
    files = [ROOT / "pyproject.toml", ROOT / CONSTRAINTS]
    files += [member / "pyproject.toml" for member in members()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def run(*command: str | Path, **extra: str) -> None:
    """Run *command* in the repository; a failure ends this script with its exit code."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **extra}
    environment.pop("PYTHONHOME", None)
    code = subprocess.call([str(part) for part in command], cwd=ROOT, env=environment)
    if code:
        sys.exit(code)


def set_up() -> None:
    """Make the virtual environment, or bring it up to date."""
    if STAMP.is_file() and STAMP.read_text() == wanted():
        return
    if not (BIN / "python").exists():
        print(f"dev.py: making {VENV.name}", file=sys.stderr)
        venv.create(VENV, with_pip=True)
    print("dev.py: installing (a minute or two)", file=sys.stderr)
    pip = (BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip")
    editable = [part for member in members() for part in ("--editable", str(member))]
    run(*pip, "--constraint", CONSTRAINTS, "--group", "dev", *editable)
    STAMP.write_text(wanted())


def demo(*arguments: str) -> None:
    """Compare every installed method on the embedded model."""
    workers = str(min(4, os.cpu_count() or 1))
    run("lmedit", "compare", "--cases", "demo", "-m", "demo", "--limit", "100",
        "--workers", workers, *arguments)  # fmt: skip


def bench(*arguments: str) -> None:
    """Plain against ours: all ratios in one table."""
    run("python", "benchmarks/all.py", *arguments)


def check(*_: str) -> None:
    """Lint, types and import contracts."""
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("mypy")
    run("lint-imports")


def test(*arguments: str) -> None:
    """All checks, then all tests; with the oldest versions the tests alone."""
    if not OLDEST:
        check()
    # One thread a process: two computing processes with two threads each stall one another.
    run("python", "-m", "pytest", "-n", "auto", *arguments, OMP_NUM_THREADS="1")


def docs(*_: str) -> None:
    """The site, in `site/`; warnings are errors."""
    run("python", "docs/build_site.py")


def isolated(*_: str) -> None:
    """Each plugin alone beside the core, from wheels; a line each."""
    run("python", "tests/together/isolated.py")


def main() -> None:
    """Read the task's name, set up, run it."""
    tasks = {"demo": demo, "test": test, "check": check, "bench": bench,
             "docs": docs, "isolated": isolated}  # fmt: skip
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="What stands behind -- is for lmedit compare, pytest or benchmarks/all.py.",
    )
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--oldest", action="store_true", help="with the oldest supported versions")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    task = parser.parse_args(given[:cut]).task
    set_up()
    tasks[task](*given[cut + 1 :])


if __name__ == "__main__":
    main()
