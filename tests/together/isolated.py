"""The core alone, each plugin alone beside it, and all together, installed from their wheels.

`python3 dev.py isolated` runs it and prints a line for each; `test_wheels.py` does the same in CI.
An environment is a folder of its own that borrows the libraries of this one, so it takes seconds.
`dev.py isolated` runs all tests of each plugin there. CI runs them all in the one environment of
`dev.py test`; here it imports them all, and runs the laws.
"""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from small_world import record, save_model
from warm import SITES, interpreter

from lmedit.testing import Texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(
    path.parent.name
    for path in (ROOT / "plugins").glob("*/pyproject.toml")
    if "lmedit.methods" in path.read_text(encoding="utf-8")
)
"""The plugins that hold methods; executors and others have tests of their own."""
MEMBERS = {"core": "lmedit", "demo": "lmedit-demo"} | {name: f"lmedit-{name}" for name in PLUGINS}
"""Our distributions by their folders' names."""
BRIEF = {"steps": "2", "validate_every": "1", "batch": "4"}
TRAINED = {
    "mend": {"rank": "4", **BRIEF},
    "malmen": {"rank": "4", **BRIEF},
    "ke": {"hidden": "4", "condition": "4", **BRIEF},
}
"""Options of the methods that are trained before they edit."""
COMMAND = "from lmedit.cli import main; main()"
LAWS = 14


def without_ours() -> dict[str, str]:
    """The variables of this process; our own sources on PYTHONPATH are out of sight."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def cold(folder: Path) -> Path:
    """The interpreter of the environment in *folder*."""
    return folder / Path("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """What *command* prints."""
    known = without_ours()
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**known, **environment},
        cwd=cwd,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def methods_of(plugin: str) -> set[str]:
    """The methods that *plugin* announces."""
    text = (ROOT / "plugins" / plugin / "pyproject.toml").read_text(encoding="utf-8")
    return set(tomllib.loads(text)["project"]["entry-points"]["lmedit.methods"])


def flags(options: Mapping[str, str]) -> list[str]:
    """*options* as the command line takes them."""
    return [part for option in options.items() for part in ("-o", *option)]


def build(out: Path) -> None:
    """The wheels of all members, in *out*."""
    plugins = [ROOT / "plugins" / name for name in PLUGINS]
    folders = (ROOT / "core", ROOT / "worlds" / "demo", *plugins)
    asked = ("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", out)
    run(sys.executable, "-m", "pip", *asked, *folders)


def link_libraries(out: Path) -> None:
    """All installed packages except our own, as links in *out*."""
    out.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "lmedit" not in item.name:
            (out / item.name).symlink_to(item)


def packages_of(environment: Path) -> Path:
    """The folder of the packages of the virtual environment in the folder *environment*."""
    base = str(environment)
    return Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))


def with_libraries(folder: Path, material: Path) -> None:
    """Make a virtual environment in *folder* that sees the libraries of *material*."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages_of(folder) / "libraries.pth").write_text(str(material / "libraries"))


@dataclass(frozen=True)
class Material:
    """What all environments share: wheels, libraries, a tiny model, text, cases, a server."""

    folder: Path
    warm: tuple[str, ...] = ()
    """The call of a server that has imported torch and sees the libraries; see `warm`."""

    @classmethod
    def make(cls, folder: Path) -> Material:
        build(folder / "wheels")
        link_libraries(folder / "libraries")
        save_model(folder / "model", seed=0)
        (folder / "text.txt").write_text("\n".join(Texts()), encoding="utf-8")
        records = [record(number, f"The tower {number}") for number in range(30)]
        (folder / "cases.json").write_text(json.dumps(records), encoding="utf-8")
        with_libraries(folder / "server", folder)
        made = cls(folder)
        with_libraries(folder / "core", folder)
        made.core.install("core")
        compileall.compile_dir(made.core.packages, quiet=1)
        return made

    @property
    def core(self) -> Environment:
        """The environment whose files of the core the others copy."""
        return Environment(self.folder / "core", self)

    @contextmanager
    def serve(self) -> Iterator[Material]:
        """Start the server for the block."""
        with interpreter(cold(self.folder / "server"), without_ours()) as warm:
            yield replace(self, warm=warm)

    def wheel(self, member: str) -> Path:
        name = MEMBERS[member].replace("-", "_")
        return next((self.folder / "wheels").glob(f"{name}-0*.whl"))


@dataclass(frozen=True)
class Environment:
    """An environment with some of our wheels in it."""

    folder: Path
    material: Material

    @classmethod
    def make(cls, folder: Path, material: Material, *members: str) -> Environment:
        """Make an environment in *folder* with the core, and install *members* there.

        The core's files are copies of those that pip installed once, with their compiled files.
        """
        with_libraries(folder, material.folder)
        made = cls(folder, material)
        shutil.copytree(material.core.packages, made.packages, dirs_exist_ok=True)
        if members:
            made.install(*members)
        return made

    @property
    def packages(self) -> Path:
        return packages_of(self.folder)

    def python(self, *arguments: object, cwd: Path | None = None, **environment: str) -> str:
        """Run *arguments* here, in a process that may have imported torch before."""
        environment |= {"LMEDIT_CACHE": str(self.folder / "cache"), SITES: str(self.packages)}
        warm = self.material.warm if sys.platform == "linux" else (str(cold(self.folder)),)
        return run(*warm, *arguments, cwd=cwd or self.folder, **environment)

    def lmedit(self, *arguments: object) -> str:
        return self.python("-c", COMMAND, *arguments)

    def install(self, *members: str) -> None:
        wheels = map(self.material.wheel, members)
        self.pip("install", "-q", "--no-deps", "--no-index", "--no-compile", *wheels)

    def uninstall(self, *members: str) -> None:
        self.pip("uninstall", "-q", "-y", *map(MEMBERS.__getitem__, members))

    def pip(self, *arguments: object) -> None:
        run(cold(self.folder), "-m", "pip", *arguments, cwd=self.folder)

    def files(self) -> set[str]:
        """What is installed here, compiled files aside."""
        at = self.packages
        found = (path.relative_to(at) for path in at.rglob("*"))
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    def methods(self, *, fresh: bool = False) -> set[str]:
        """The methods that `lmedit methods` lists; each must load, if asked in a fresh process."""
        asked = ("-c", COMMAND, "methods", "--check", "--json")
        printed = run(cold(self.folder), *asked, cwd=self.folder) if fresh else self.python(*asked)
        listed = json.loads(printed)
        assert all(entry["state"] == "ok" for entry in listed), listed
        return {entry["name"] for entry in listed}

    def compare(self, methods: set[str]) -> set[str]:
        """The rows of a tiny comparison of *methods*, which are here; none of its edits failed."""
        at = self.material.folder
        model, cases, options = at / "model", at / "cases.json", {}
        corpora = [f"{name}={cases}" for name in sorted(methods & set(TRAINED))]
        if methods & {"rome", "memit"} or not corpora:
            corpora.append(str(at / "text.txt"))
        for name in sorted(methods & set(TRAINED)):
            self.lmedit("prepare", name, "-m", model, "--corpus", cases, *flags(TRAINED[name]))
            options |= {f"{name}.{option}": value for option, value in TRAINED[name].items()}
        printed = self.lmedit(
            "compare",
            "--cases",
            cases,
            "-m",
            model,
            *(part for corpus in corpora for part in ("--corpus", corpus)),
            "--limit",
            1,
            "--json",
            *flags(options),
        )
        rows = json.loads(printed)["rows"]
        assert all(row["n_failed"] == 0 for row in rows), rows
        return {row["method"] for row in rows}

    def own_tests(self, plugin: str, *, laws: bool) -> str:
        """Run the plugin's own tests, or its *laws* alone; nothing may fail or be skipped."""
        tests = ROOT / "plugins" / plugin / "tests"
        chosen = ("-k", "test_law_") if laws else ()
        told = self.python(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, *chosen),
            cwd=ROOT,
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",  # they complain of what was imported before
        )
        some = r"(\d+) passed, (\d+) deselected in .*" if laws else r"(\d+) passed in .*"
        found = re.fullmatch(some, told.splitlines()[-1])
        assert found, told[-2000:]
        if not laws:
            return f"{found[1]} tests of its own"
        assert int(found[1]) >= LAWS
        return f"{found[1]} tests of laws, {found[2]} more imported"


def core_alone(material: Material, folder: Path) -> str:
    """The core without any method: it works, and there is none."""
    alone = Environment.make(folder, material)
    assert alone.methods(fresh=True) == set()
    assert alone.compare(set()) == {"base"}
    return "no method; a comparison has the unedited model alone"


def plugin_alone(material: Material, folder: Path, plugin: str, *, laws: bool = False) -> str:
    """A plugin and the core: its methods and no other, its own tests, and no trace of it after."""
    names = methods_of(plugin)
    own = Environment.make(folder, material)
    without = own.files()
    own.install(plugin)
    assert own.methods(fresh=True) == names
    assert own.compare(names) == {"base", *names}
    tested = own.own_tests(plugin, laws=laws)
    own.uninstall(plugin)
    assert own.files() == without
    assert own.methods() == set()
    return f"{', '.join(sorted(names))}; {tested}; gone when uninstalled"


def all_together(material: Material, folder: Path) -> str:
    """All: every method at once; without one plugin its methods are gone, and nothing else."""
    names = {plugin: methods_of(plugin) for plugin in PLUGINS}
    everything = set().union(*names.values())
    whole = Environment.make(folder, material, *(name for name in MEMBERS if name != "core"))
    assert whole.methods(fresh=True) == everything
    assert whole.compare(everything) == {"base", *everything}
    for plugin in PLUGINS:
        whole.uninstall(plugin)
        assert whole.methods() == everything - names[plugin]
        whole.install(plugin)
    assert whole.methods() == everything
    return f"{', '.join(sorted(everything))}; each gone alone when uninstalled"


def main() -> None:
    """Check everything, a line each; the first that fails ends it."""
    with TemporaryDirectory() as place:
        made = Material.make(Path(place))
        with made.serve() as material:
            check_each(material, Path(place) / "environments")


def check_each(material: Material, place: Path) -> None:
    """Check the core, each plugin and all together, in environments below *place*."""
    for name in ("core", *PLUGINS, "all"):
        started = time.perf_counter()
        folder = place / name
        if name in PLUGINS:
            told = plugin_alone(material, folder, name)
        else:
            told = {"core": core_alone, "all": all_together}[name](material, folder)
        print(f"{name:<5} {time.perf_counter() - started:5.1f} s  {told}", flush=True)


if __name__ == "__main__":
    main()
