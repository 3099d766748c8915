#!/usr/bin/env python3
"""Set up this repository and run one task in it.

    python3 dev.py --list                # the tasks
    python3 dev.py test                  # all checks and all tests, as CI runs them
    python3 dev.py test --only rome      # the tests of one plugin, or of a folder of tests/
    python3 dev.py test --changed        # the tests of the files that you changed
    python3 dev.py demo -- --limit 3     # what follows -- is for the tool behind the task

This script needs python3 with pip and venv. It makes the folder `.venv` beside this file. There it
installs the core, all plugins and the worlds from their folders, with the versions of
`constraints.txt`. For `demo`, `real` and `play` it leaves out the tools for tests, types and docs.
A second call installs only what is missing, or all if a `pyproject.toml` or the constraints
changed. `test --oldest` does the same in `.venv-oldest`, with the oldest supported versions
(`constraints-oldest.txt`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent
EVERYTHING = ("tests", "plugins")
TESTS_PER_PROCESS = 12
"""For so few test files a second process costs more than it saves."""
SECONDS_PER_TEST = 600
"""The limit of one test with its fixtures. The slowest ones take a tenth of it."""

ONE_FACT = ("ft", "ft-l", "ke", "kn", "mend", "rome")
"""The methods of the paper's Table 4. `real` compares them; the others edit many facts at once."""


class Place(NamedTuple):
    """A virtual environment, and the file with the versions that it holds."""

    folder: Path = ROOT / ".venv"
    constraints: str = "constraints.txt"

    @property
    def programs(self) -> Path:
        """The folder of the environment's programs."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def stamp(self) -> Path:
        """The file that says what was installed."""
        return self.folder / "lmedit-installed"


NEWEST = Place()
OLDEST = Place(ROOT / ".venv-oldest", "constraints-oldest.txt")


def members() -> list[Path]:
    """Return the folders of all distributions, the core first."""
    files = [
        *sorted(ROOT.glob("plugins/*/pyproject.toml")),
        *sorted(ROOT.glob("worlds/*/pyproject.toml")),
    ]
    return [ROOT / "core", *(file.parent for file in files)]


def install_digest(place: Place) -> str:
    """Return a digest of all that decides what is installed in *place*."""
    files = [ROOT / "pyproject.toml", ROOT / place.constraints]
    files += [member / "pyproject.toml" for member in members()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def environment(place: Place, **extra: str) -> dict[str, str]:
    """Return the variables for a program of *place*. Its compiled modules are stored, for speed."""
    path = f"{place.programs}{os.pathsep}{os.environ['PATH']}"
    left_out = {"PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PATH": path, **extra}


def run(
    *command: str | Path,
    place: Place = NEWEST,
    prints: TextIO | int | None = None,
    fails: bool = True,
    **extra: str,
) -> None:
    """Run *command* in the repository; if it *fails*, end this script with its exit code.

    Its output goes to *prints*, by default to stdout. If not *fails*, its exit code is lost.
    """
    parts = [str(part) for part in command]
    code = subprocess.call(parts, cwd=ROOT, env=environment(place, **extra), stdout=prints)
    if code and fails:
        sys.exit(code)


@contextmanager
def beside(*command: str, place: Place = NEWEST) -> Iterator[None]:
    """Run *command* while the block runs, wait for it, and print what it printed.

    If it failed, end this script with its exit code. If the block fails, the command ends at once.
    """
    with tempfile.TemporaryFile() as told:
        running = subprocess.Popen(
            command, cwd=ROOT, env=environment(place), stdout=told, stderr=subprocess.STDOUT
        )
        try:
            yield
        except BaseException:
            running.terminate()
            raise
        finally:
            running.wait()
        told.seek(0)
        sys.stdout.write(told.read().decode(errors="replace"))
        sys.stdout.flush()
    if running.returncode:
        sys.exit(running.returncode)


def set_up(place: Place, group: str = "dev") -> None:
    """Make the virtual environment with the tools of *group*, or bring it up to date."""
    digest = install_digest(place)
    there = place.stamp.read_text().split() if place.stamp.is_file() else []
    if there in ([group, digest], ["dev", digest]):  # dev includes the other group
        return
    if not (place.programs / "python").exists():
        print(f"dev.py: making {place.folder.name}", file=sys.stderr)
        venv.create(place.folder, with_pip=True)
    print("dev.py: installing (a minute or two)", file=sys.stderr)
    pip = (place.programs / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip", place=place)
    # Most modules of torch and transformers are never imported, so pip compiles none of them.
    install = (*pip, "--no-compile", "--constraint", place.constraints)
    run(*install, "--group", group, place=place)
    # The tools that build are there now: pip need not install them again for each distribution.
    editable = [part for member in members() for part in ("--editable", str(member))]
    run(*install, "--no-build-isolation", *editable, place=place)
    place.stamp.write_text(f"{group} {digest}")


# ---- the tests to run


def suites() -> dict[str, str]:
    """Return the names that `--only` takes, each with its folder of tests."""
    folders = [*sorted(ROOT.glob("plugins/*/tests")), *sorted(ROOT.glob("tests/*/"))]
    named = {at.parent.name if at.name == "tests" else at.name: at for at in folders}
    return {
        name: at.relative_to(ROOT).as_posix() for name, at in named.items() if any(at.glob("*.py"))
    }


def changed_tests(place: Place, since: str) -> list[str]:
    """Return the test files of what changed; the script behind it says why, on stderr."""
    script = ROOT / "tests" / "architecture" / "changed_tests.py"
    command = [str(place.programs / "python"), str(script), *(["--since", since] if since else [])]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(place), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.split()


def processes(paths: list[str]) -> list[str]:
    """Return pytest's options for parallel work: none for a few files, else one process a core."""
    files = [file for path in paths for file in [ROOT / path, *(ROOT / path).rglob("test_*.py")]]
    few = sum(file.suffix == ".py" for file in files) <= TESTS_PER_PROCESS
    return [] if few and paths else ["-n", "auto", "--dist", "worksteal"]


# ---- the tasks: the first line of each is what --list shows


def test(asked: argparse.Namespace) -> None:
    """Run all checks, then all tests. --only NAME or --changed run those tests alone."""
    paths: list[str] = [suites()[name] for name in asked.only or ()]
    if asked.changed is not None:
        paths += changed_tests(asked.place, asked.changed)
        if not paths:
            return
        print("dev.py: testing", *paths, sep="\n  ", file=sys.stderr)
    if not paths and asked.place == NEWEST:
        # mypy takes as long as all else here, so each has a core.
        with beside("mypy"):
            check(asked, types=False)
            # The collection compiles all modules, for all processes. The tests tell its errors.
            collect = ("python", "-m", "pytest", "--collect-only", "-qqq")
            run(*collect, prints=subprocess.DEVNULL, fails=False)
    # One thread a process: two computing processes with two threads each stall one another.
    # MKL's last bits depend on where a matrix lies in memory, unless this setting is strict.
    # A test that hangs fails, and prints the stacks of all threads.
    limit = f"--timeout={SECONDS_PER_TEST}"
    command = ("python", "-m", "pytest", limit, *processes(paths), *paths, *asked.rest)
    run(*command, place=asked.place, OMP_NUM_THREADS="1", MKL_CBWR="AUTO,STRICT")


def check(asked: argparse.Namespace, types: bool = True) -> None:
    """Check style, layout, types and the import contracts. It takes a minute, then seconds."""
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    if types:
        run("mypy")
    run("lint-imports")


def demo(asked: argparse.Namespace) -> None:
    """Compare all installed methods on the embedded model. After --: flags of lmedit compare."""
    flags = ("--cases", "demo", "-m", "demo", "--limit", "100")
    workers = str(min(4, os.cpu_count() or 1))
    run("lmedit", "compare", *flags, "--workers", workers, "--compute", "auto", *asked.rest)


def real(asked: argparse.Namespace) -> None:
    """Pull a real model and compare methods on it. After --: more methods, flags of compare."""
    run("lmedit", "models", "pull", "smollm2", prints=sys.stderr)  # stdout is for the table
    flags = ("--cases", "smollm2", "-m", "smollm2", "--limit", "100", "--compute", "auto")
    workers = str(min(4, os.cpu_count() or 1))
    run("lmedit", "compare", *ONE_FACT, *flags, "--workers", workers, *asked.rest)


def play(asked: argparse.Namespace) -> None:
    """Open the playground in the browser. After --: flags of lmedit play."""
    run("lmedit", "play", "--open", *asked.rest)


def bench(asked: argparse.Namespace) -> None:
    """Time our code against plain code, in about twenty minutes. After --: flags of all.py."""
    run("python", "benchmarks/all.py", *asked.rest)


def docs(asked: argparse.Namespace) -> None:
    """Build the site into the folder site/. A warning is an error."""
    run("python", "docs/build_site.py")


def isolated(asked: argparse.Namespace) -> None:
    """Install each plugin from its wheel, alone beside the core, and run all its tests there."""
    run("python", "tests/together/isolated.py", *asked.rest)


def attack(asked: argparse.Namespace) -> None:
    """Attack with damaged files, kills, interrupts and bad plugins. After --: --minutes N."""
    path = str(ROOT / "tests" / "together")
    run("python", "tests/attack/attack.py", *asked.rest, OMP_NUM_THREADS="1", PYTHONPATH=path)


def rooms(asked: argparse.Namespace) -> None:
    """Count the rooms, floors, imports and circles of the core. After --: --types."""
    run("python", "tests/architecture/count_rooms.py", *asked.rest)


def families(asked: argparse.Namespace) -> None:
    """Try every decoder of transformers, write docs/reference/families.md. After --: its flags."""
    run("python", "tests/families/sweep.py", *asked.rest, OMP_NUM_THREADS="1")


TASKS = {
    task.__name__: task
    for task in (test, check, demo, real, play, bench, docs, isolated, attack, rooms, families)
}

WITHOUT_TOOLS = (demo, real, play)
"""Tasks of a user. Half of the installation is tools for tests, types and docs."""


def list_tasks() -> str:
    """Return a line for each task."""
    lines = {name: (task.__doc__ or "").splitlines()[0] for name, task in TASKS.items()}
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def read(given: list[str]) -> argparse.Namespace:
    """Return what the command line *given* asks for."""
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description=about,
        epilog=f"tasks:\n{list_tasks()}\n\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=TASKS, metavar="TASK", nargs="?")
    parser.add_argument("--list", action="store_true", help="print the tasks, a line each")
    alone = parser.add_argument_group("for the task test")
    alone.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=suites(),
        help=f"run the tests of these alone: {', '.join(suites())}",
    )
    alone.add_argument(
        "--changed",
        nargs="?",
        const="",
        metavar="REF",
        help="run the tests of the files that differ from where this branch left REF or main",
    )
    alone.add_argument("--oldest", action="store_true", help="with the oldest supported versions")
    cut = given.index("--") if "--" in given else len(given)
    asked = parser.parse_args(given[:cut])
    asked.rest, asked.place = given[cut + 1 :], OLDEST if asked.oldest else NEWEST
    if asked.task is None and not asked.list:
        parser.error("name a task; python3 dev.py --list shows them")
    if asked.task != "test" and (asked.oldest or asked.only or asked.changed is not None):
        parser.error("--only, --changed and --oldest belong to the task test")
    return asked


def main() -> None:
    """Read the command line, set up, run the task."""
    asked = read(sys.argv[1:])
    if asked.list:
        print(list_tasks())
        return
    task = TASKS[asked.task]
    set_up(asked.place, "use" if task in WITHOUT_TOOLS else "dev")
    task(asked)


if __name__ == "__main__":
    main()
