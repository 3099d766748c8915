"""The core alone, each plugin alone beside it, and all together, installed from their wheels.

`python3 dev.py isolated` runs it and prints a line for each; `test_wheels.py` does the same in CI.
An environment is a folder of its own that borrows the libraries of this one, so it takes seconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from small_world import record, save_model

from lmedit.testing import Texts

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir())
MEMBERS = {"core": "lmedit", "demo": "lmedit-demo"} | {name: f"lmedit-{name}" for name in PLUGINS}
"""Our distributions by their folders' names."""
BRIEF = {"steps": "2", "validate_every": "1", "batch": "4"}
TRAINED = {
    "mend": {"rank": "4", **BRIEF},
    "ke": {"hidden": "4", "condition": "4", **BRIEF},
}
"""Options of the methods that are trained before they edit."""


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    """What *command* prints; our own sources on PYTHONPATH are out of its sight."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, env={**known, **environment}, cwd=cwd, check=False,
    )  # fmt: skip
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
    for folder in (ROOT / "core", ROOT / "worlds" / "demo", *plugins):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, folder)


def link_libraries(out: Path) -> None:
    """All installed packages except our own, as links in *out*."""
    out.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if "lmedit" not in item.name:
            (out / item.name).symlink_to(item)


@dataclass(frozen=True)
class Material:
    """What all environments share: wheels, libraries, a tiny model, text, and cases."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Material:
        build(folder / "wheels")
        link_libraries(folder / "libraries")
        save_model(folder / "model", seed=0)
        (folder / "text.txt").write_text("\n".join(Texts()), encoding="utf-8")
        records = [record(number, f"The tower {number}") for number in range(30)]
        (folder / "cases.json").write_text(json.dumps(records), encoding="utf-8")
        return cls(folder)

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
        venv.create(folder, with_pip=False, symlinks=True)
        made = cls(folder, material)
        (made.packages / "libraries.pth").write_text(str(material.folder / "libraries"))
        made.install(*members)
        return made

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("[Ll]ib/**/site-packages")
        return found

    def python(self, *arguments: object, cwd: Path | None = None) -> str:
        name = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")
        cache = str(self.folder / "cache")
        return run(self.folder / name, *arguments, cwd=cwd or self.folder, LMEDIT_CACHE=cache)

    def lmedit(self, *arguments: object) -> str:
        return self.python("-c", "from lmedit.cli import main; main()", *arguments)

    def install(self, *members: str) -> None:
        wheels = map(self.material.wheel, members)
        self.python("-m", "pip", "install", "-q", "--no-deps", "--no-index", *wheels)

    def uninstall(self, *members: str) -> None:
        self.python("-m", "pip", "uninstall", "-q", "-y", *map(MEMBERS.__getitem__, members))

    def files(self) -> set[str]:
        """What is installed here, compiled files aside."""
        found = (path.relative_to(self.packages) for path in self.packages.rglob("*"))
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    def methods(self) -> set[str]:
        """The methods that `lmedit methods` lists; each must load."""
        listed = json.loads(self.lmedit("methods", "--check", "--json"))
        assert all(entry["state"] == "ok" for entry in listed), listed
        return {entry["name"] for entry in listed}

    def compare(self) -> set[str]:
        """The rows of a tiny comparison, none of whose edits failed."""
        at = self.material.folder
        model, cases, options = at / "model", at / "cases.json", {}
        for name in sorted(self.methods() & set(TRAINED)):
            self.lmedit("prepare", name, "-m", model, "--corpus", cases, *flags(TRAINED[name]))
            options |= {f"{name}.{option}": value for option, value in TRAINED[name].items()}
        printed = self.lmedit(
            "compare", "--cases", cases, "-m", model, "--corpus", at / "text.txt", "--limit", 1,
            "--json", *flags(options),
        )  # fmt: skip
        rows = json.loads(printed)["rows"]
        assert all(row["n_failed"] == 0 for row in rows), rows
        return {row["method"] for row in rows}

    def own_tests(self, plugin: str) -> int:
        """How many of the plugin's own tests passed here; none may do anything else."""
        tests = ROOT / "plugins" / plugin / "tests"
        told = self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=ROOT)
        found = re.fullmatch(r"(\d+) passed in .*", told.splitlines()[-1])
        assert found, told[-2000:]
        return int(found[1])


def core_alone(material: Material, folder: Path) -> str:
    """The core without any method: it works, and there is none."""
    alone = Environment.make(folder, material, "core")
    assert alone.methods() == set()
    assert alone.compare() == {"base"}
    return "no method; a comparison has the unedited model alone"


def plugin_alone(material: Material, folder: Path, plugin: str) -> str:
    """A plugin and the core: its methods and no other, its own tests, and no trace of it after."""
    own = Environment.make(folder, material, "core")
    without, names = own.files(), methods_of(plugin)
    own.install(plugin)
    assert own.methods() == names
    assert own.compare() == {"base", *names}
    passed = own.own_tests(plugin)
    own.uninstall(plugin)
    assert own.files() == without
    assert own.methods() == set()
    return f"{', '.join(sorted(names))}; {passed} tests of its own; gone when uninstalled"


def all_together(material: Material, folder: Path) -> str:
    """All: every method at once; without one plugin its methods are gone, and nothing else."""
    whole = Environment.make(folder, material, *MEMBERS)
    names = {plugin: methods_of(plugin) for plugin in PLUGINS}
    everything = set().union(*names.values())
    assert whole.methods() == everything
    assert whole.compare() == {"base", *everything}
    for plugin in PLUGINS:
        whole.uninstall(plugin)
        assert whole.methods() == everything - names[plugin]
        whole.install(plugin)
    assert whole.methods() == everything
    return f"{', '.join(sorted(everything))}; each gone alone when uninstalled"


def main() -> None:
    """Check everything, a line each; the first that fails ends it."""
    with TemporaryDirectory() as place:
        material = Material.make(Path(place))
        for name in ("core", *PLUGINS, "all"):
            started = time.perf_counter()
            folder = Path(place) / "environments" / name
            if name in PLUGINS:
                told = plugin_alone(material, folder, name)
            else:
                told = {"core": core_alone, "all": all_together}[name](material, folder)
            print(f"{name:<5} {time.perf_counter() - started:5.1f} s  {told}", flush=True)


if __name__ == "__main__":
    main()
