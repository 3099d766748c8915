"""The rules of the house: what is imported when, sizes, versions, and what no source may do."""

from __future__ import annotations

import ast
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lmedit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PLUGIN_FOLDERS = sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))
WORLD_FOLDERS = sorted(file.parent for file in (ROOT / "worlds").glob("*/pyproject.toml"))
MEMBERS = [ROOT / "core", *PLUGIN_FOLDERS, *WORLD_FOLDERS]
SOURCES = sorted(file for member in MEMBERS for file in (member / "src").rglob("*.py"))
OF_TOOL = [file for file in SOURCES if ROOT / "worlds" not in file.parents]
HEAVY = ("torch", "transformers", "datasets", "safetensors", "numpy")
PLUGINS = sorted(
    package.parent.name
    for folder in PLUGIN_FOLDERS
    for package in (folder / "src").glob("*/__init__.py")
)

by_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
by_source = pytest.mark.parametrize(
    "source", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix()
)


def python(code: str, folder: Path, **environment: str) -> str:
    """What *code* prints in a fresh interpreter that runs in *folder*."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_everything_writes_nothing(tmp_path: Path) -> None:
    names = [m.name for m in pkgutil.walk_packages(lmedit.__path__, "lmedit.")]
    assert {"lmedit.cli.compare", "lmedit.models.tokens", "lmedit.testing"} <= set(names)
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    code = f"import importlib\nfor name in {[*names, *PLUGINS]!r}: importlib.import_module(name)"
    printed = python(code, here, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    assert printed == ""
    assert list(here.iterdir()) == []
    assert list(home.iterdir()) == []


LIGHT = {
    "lmedit": "import lmedit",
    "lmedit.types": "import lmedit.types",
    "lmedit.errors": "import lmedit.errors",
    "lmedit.hookspecs": "import lmedit.hookspecs",
    "lmedit.registry": "import lmedit.registry",
    "lmedit.defaults": "import lmedit.defaults",
    "lmedit.cli": "import lmedit.cli",
    "registry.entries": "from lmedit.registry import entries; entries()",
    "public hookimpl": "from lmedit import hookimpl, Options, Request",
    "lmedit --help": "COMMAND --help",
    "lmedit --version": "COMMAND --version",
    "lmedit methods": "COMMAND methods",
    "lmedit methods --json": "COMMAND methods --json",
    "lmedit compare --help": "COMMAND compare --help",
    "lmedit edit --help": "COMMAND edit --help",
}
COMMAND = "from lmedit.cli import main; main({arguments!r}, standalone_mode=False)"


@pytest.mark.parametrize("what", LIGHT)
def test_what_should_be_light_imports_nothing_heavy(what: str, tmp_path: Path) -> None:
    code, _, arguments = LIGHT[what].partition("COMMAND ")
    code = code or COMMAND.format(arguments=arguments.split())
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    modules = json.loads(python(f"{code}\n{report}", tmp_path).splitlines()[-1])
    assert "lmedit" in modules
    tops = {module.partition(".")[0] for module in modules}
    assert tops & {*HEAVY, *PLUGINS} == set()


def test_methods_finds_the_plugins_it_does_not_import(tmp_path: Path) -> None:
    code = COMMAND.format(arguments=["methods", "--json"])
    found = json.loads(python(code, tmp_path, LMEDIT_PLUGINS="rome,ft,ft-l"))
    assert {"rome", "ft", "ft-l"} <= {entry["name"] for entry in found}


def test_every_public_name_can_be_imported() -> None:
    for name in lmedit.__all__:
        assert getattr(lmedit, name) is not None
    assert sorted(lmedit.__all__) == sorted(lmedit._HOME_OF)


# ---- distributions


@cache
def project(member: Path) -> dict[str, object]:
    return tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))


def test_all_distributions_have_one_version() -> None:
    versions = {project(member)["project"]["version"] for member in MEMBERS}
    assert versions == {lmedit.__version__}


@by_member
def test_a_distribution_says_how_it_is_built(member: Path) -> None:
    assert project(member)["build-system"]["build-backend"] == "hatchling.build"
    assert "hatchling" in project(member)["build-system"]["requires"]


@by_member
def test_all_but_the_core_require_the_core_of_this_version(member: Path) -> None:
    requirements = project(member)["project"]["dependencies"]
    cores = [r for r in requirements if r.startswith("lmedit")]
    assert cores == ([] if member.name == "core" else ["lmedit>=0.1,<0.2"])


@by_member
def test_a_distribution_packs_its_own_package_alone_with_types_and_readme(member: Path) -> None:
    meta = project(member)
    name = meta["project"]["name"].replace("-", "_")
    assert meta["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{name}"]
    assert [file.parent.name for file in (member / "src").glob("*/__init__.py")] == [name]
    assert (member / "src" / name / "py.typed").is_file()
    assert (member / meta["project"]["readme"]).is_file()
    assert meta["project"]["license"] == "Apache-2.0"
    assert meta["project"]["requires-python"] == ">=3.11"


@by_member
def test_entry_points_name_modules_that_exist(member: Path) -> None:
    for group in project(member)["project"].get("entry-points", {}).values():
        for value in group.values():
            module = value.partition(":")[0].replace(".", "/")
            places = (member / "src" / f"{module}.py", member / "src" / module / "__init__.py")
            assert any(place.is_file() for place in places)


# ---- sources


@cache
def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, Function))


def lines_of_code(function: Function, source: Path) -> int:
    """Lines from `def` to the end that are neither docstring, blank, nor comment alone."""
    assert function.end_lineno is not None
    skipped: set[int] = set()
    for node in ast.walk(function):
        if isinstance(node, Function | ast.ClassDef) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = source.read_text(encoding="utf-8").splitlines()
    numbers = range(function.lineno, function.end_lineno + 1)
    texts = [lines[number - 1].strip() for number in numbers if number not in skipped]
    return sum(1 for text in texts if text and not text.startswith("#"))


def test_the_counter_of_lines_counts() -> None:
    source = Path(__file__)
    (itself,) = (f for f in functions(source) if f.name == "lines_of_code")
    assert lines_of_code(itself, source) == 10


@by_source
def test_functions_are_short(source: Path) -> None:
    most = 15 if source.name == "equations.py" else 40
    long = {f.name: n for f in functions(source) if (n := lines_of_code(f, source)) > most}
    assert long == {}


@by_source
def test_files_are_short(source: Path) -> None:
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 350


def offences(module: ast.Module) -> list[str]:
    """`print`, `global`, a bare `except`, or a star import, with their lines."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id == "print":
            found.append(f"{node.lineno}: print")
        if isinstance(node, ast.Global):
            found.append(f"{node.lineno}: global")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"{node.lineno}: star import")
    return found


@by_source
def test_no_print_no_global_no_bare_except_no_star_import(source: Path) -> None:
    assert offences(tree(source)) == []


@pytest.mark.parametrize(
    "code",
    ["print(1)", "def f():\n    global x", "try:\n    x\nexcept:\n    pass", "from os import *"],
)
def test_what_no_source_may_do_is_noticed(code: str) -> None:
    assert len(offences(ast.parse(code))) == 1


@by_source
def test_everything_is_annotated(source: Path) -> None:
    for function in functions(source):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        assert (function.name, bare) == (function.name, [])
        assert function.returns is not None or function.name == "__init__", function.name


def imports(source: Path) -> set[str]:
    """Top-level names of all imports, those for type checking left out."""
    found: set[str] = set()
    stack: list[ast.AST] = [tree(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            stack += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        stack += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if s.name == "equations.py"], ids=lambda s: s.parent.name
)
def test_equations_import_torch_alone(source: Path) -> None:
    assert imports(source) <= {"__future__", "typing", "math", "torch"}


def test_only_cases_import_datasets_and_only_the_cli_imports_click() -> None:
    core = ROOT / "core" / "src" / "lmedit"
    for package, room in (("datasets", core / "cases"), ("click", core / "cli")):
        users = {source.parent for source in SOURCES if package in imports(source)}
        assert users == {room}


def test_no_run_of_six_lines_stands_in_two_plugins() -> None:
    seen: dict[tuple[str, ...], str] = {}
    repeated = []
    for source in OF_TOOL:
        owner = source.relative_to(ROOT).parts[1]
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        code = [line for line in lines if len(line) > 1 and not line.startswith(("#", "from "))]
        for start in range(len(code) - 5):
            run = tuple(code[start : start + 6])
            if seen.setdefault(run, owner) != owner:
                repeated.append((seen[run], owner, run[0]))
    assert repeated == []
