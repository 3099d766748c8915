"""Choose the tests of the files that changed, by imports and by names.

    python tests/architecture/changed_tests.py [--since REF]

It prints the chosen test files on stdout, and a reason for each change on stderr. It compares the
files with the commit where this branch left REF. A test file is chosen for these reasons:

- it changed itself, or a helper or `conftest.py` that it uses changed;
- it imports a changed module, or a module that imports that one through any number of others;
- it names a method of a changed plugin or runs documents, as entry points find methods too;
- it names a changed script of `benchmarks/`, or `dev.py`; documents are tested in `tests/docs`.

A change of any other kind chooses everything: the script prints `tests` and `plugins`.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

import grimp

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = ("tests", "plugins")
MAIN_BRANCHES = ("origin/HEAD", "main", "master")
ALWAYS_FOR_SOURCES = "tests/architecture/test_architecture.py"


class UnsureError(Exception):
    """The tests of a change are not known."""


def git(*arguments: str, root: Path = ROOT) -> list[str]:
    """Return the parts, separated by NUL or by lines, of what git prints; none when it fails."""
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    return re.split(r"[\0\n]", done.stdout.strip("\0\n")) if done.stdout.strip("\0\n") else []


def changed_files(since: str | None = None, root: Path = ROOT) -> list[str]:
    """Return the paths that differ from where this branch left *since* (or the main branch)."""
    bases = (since,) if since else MAIN_BRANCHES
    found = [base for name in bases for base in git("merge-base", "HEAD", name, root=root)]
    if since and not found:
        raise SystemExit(f"{since} is no commit of this history; give a branch or a commit")
    base = found[0] if found else "HEAD"
    differing = git("diff", "--name-only", "--no-renames", "-z", base, root=root)
    new = git("ls-files", "--others", "--exclude-standard", "-z", root=root)
    return sorted({*differing, *new})


def words(text: str) -> set[str]:
    """Return the words of *text*; a hyphen and an underscore belong to a word."""
    return set(re.findall(r"[\w-]+", text))


def uses(helper: str, code: str) -> bool:
    """Return whether *code* imports the module *helper*, or has its file's name in a text."""
    stem = re.escape(PurePosixPath(helper).stem)
    return bool(re.search(rf"^\s*(?:import|from) {stem}\b|\b{stem}\.py\b", code, re.MULTILINE))


@dataclass(frozen=True, eq=False)
class Workspace:
    """The sources and the test files of a checkout."""

    root: Path = ROOT
    homes: dict[str, str] = field(default_factory=dict)
    """For each public name of `lmedit`, the module that it is loaded from on first use."""

    @cached_property
    def members(self) -> dict[str, str]:
        """For each package, the folder of its distribution."""
        places = ("core", "plugins/*", "worlds/*")
        files = [f for at in places for f in self.root.glob(f"{at}/src/*/__init__.py")]
        found = {file.parent.name: file.parents[2].relative_to(self.root) for file in files}
        return {name: folder.as_posix() for name, folder in sorted(found.items())}

    @cached_property
    def graph(self) -> grimp.ImportGraph:
        """The imports of all packages, those for type checking left out."""
        return grimp.build_graph(*self.members, exclude_type_checking_imports=True, cache_dir=None)

    @cached_property
    def test_files(self) -> list[str]:
        """All test files."""
        files = [
            *self.root.glob("tests/**/test_*.py"),
            *self.root.glob("plugins/*/tests/test_*.py"),
        ]
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    @cache  # noqa: B019  (a workspace lives as long as the script)
    def text(self, path: str) -> str:
        """Return the text of a file."""
        return (self.root / path).read_text(encoding="utf-8")

    @cache  # noqa: B019
    def sources_of(self, test: str) -> frozenset[str]:
        """Return *test*, all `conftest.py` above it, and the helpers that any of these name."""
        folders = [PurePosixPath(test).parent, *PurePosixPath(test).parent.parents]
        above = [f"{folder}/conftest.py" for folder in folders]
        found, new = set[str](), {test, *(file for file in above if (self.root / file).is_file())}
        while new:
            found |= new
            texts = [self.text(path) for path in new]
            new = {path for path in self.helpers(test) if any(uses(path, t) for t in texts)} - found
        return frozenset(found)

    def helpers(self, test: str) -> list[str]:
        """Return the modules that a test may import: those beside it, and in `tests/together`."""
        folders = {self.root / test, self.root / "tests" / "together" / "_"}
        files = [file for at in folders for file in at.parent.glob("*.py")]
        paths = {file.relative_to(self.root).as_posix() for file in files}
        return sorted(path for path in paths if not re.match(r"test_|conftest", Path(path).name))

    @cache  # noqa: B019
    def modules_of(self, test: str) -> frozenset[str]:
        """Return the modules of ours that *test* and its helpers name."""
        return frozenset(
            module for path in self.sources_of(test) for module in self.named_in(self.text(path))
        )

    def named_in(self, code: str) -> set[str]:
        """Return the modules of ours that *code* imports, or names with dots in a text."""
        names = set(re.findall(r"\blmedit\w*(?:\.\w+)+", code))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return {module for name in names for module in self.modules_behind(name)}

    def modules_behind(self, name: str) -> set[str]:
        """Return the longest module that a dotted *name* begins with, and a public name's home."""
        package, _, public = name.partition(".")
        if package == "lmedit" and public in self.homes:
            return {"lmedit", self.homes[public]}
        while name and name not in self.graph.modules:
            name = name.rpartition(".")[0]
        return {name} if name else set()

    def methods_of(self, folder: str) -> set[str]:
        """Return the names by which the distribution in *folder* is found."""
        meta = tomllib.loads(self.text(f"{folder}/pyproject.toml"))["project"]
        groups = meta.get("entry-points", {}).values()
        return {PurePosixPath(folder).name, *(name for group in groups for name in group)}

    # ---- the tests of one changed file

    def tests_of(self, path: str) -> list[str]:
        """Return the tests of the changed *path*; raise `UnsureError` if they are not known."""
        parts = PurePosixPath(path).parts
        if path in self.test_files:
            return [path]
        if re.search(r"(^|/)tests/(.*/)?test_\w+\.py$", path):
            return []  # a deleted test file
        if path.endswith(".md") or parts[0] == "docs":
            return [test for test in self.test_files if test.startswith("tests/docs/")]
        if path == "dev.py" or parts[0] in {".ci", ".github"}:
            return self.naming({"dev"})
        if parts[0] == "benchmarks":
            return self.naming({"benchmarks"})
        if "tests" in parts and path.endswith(".py") and (self.root / path).is_file():
            return [test for test in self.test_files if path in self.sources_of(test)]
        if "src" in parts and path.endswith(".py") and (self.root / path).is_file():
            return self.of_source(path)
        raise UnsureError(path)

    def naming(self, wanted: set[str]) -> list[str]:
        """Return the test files that have a word of *wanted*, in themselves or in helpers."""
        return [
            test
            for test in self.test_files
            if wanted & set().union(*(words(self.text(path)) for path in self.sources_of(test)))
        ]

    def of_source(self, path: str) -> list[str]:
        """Return the tests that reach a module by imports, or its method by name."""
        folder, _, inside = path.partition("/src/")
        module = inside.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module not in self.graph.modules:
            raise UnsureError(path)
        reached = {module, *self.graph.find_downstream_modules(module)}
        found = {test for test in self.test_files if self.modules_of(test) & reached}
        if folder != self.members["lmedit"]:
            found |= set(self.naming(self.methods_of(folder)))
            own = (f"{folder}/", "tests/docs/")  # the documents' commands name methods
            found |= {test for test in self.test_files if test.startswith(own)}
        return sorted(found | {ALWAYS_FOR_SOURCES})


def choose(paths: list[str], workspace: Workspace) -> tuple[list[str], list[str]]:
    """Return the tests of the changed *paths*, and a line for each path that says how many."""
    chosen, lines = set[str](), []
    for path in paths:
        try:
            tests = workspace.tests_of(path)
        except UnsureError:
            return list(EVERYTHING), [f"{path}: every test can depend on it"]
        lines.append(f"{path}: {len(tests)} test file(s)")
        chosen |= set(tests)
    return sorted(chosen), lines


def main() -> None:
    """Print the tests of what changed."""
    import lmedit

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--since", metavar="REF", help="a branch or commit to compare with")
    paths = changed_files(parser.parse_args().since)
    chosen, lines = choose(paths, Workspace(homes=lmedit._HOME_OF))
    print("\n".join(lines or ["no file has changed"]), file=sys.stderr)
    print("\n".join(chosen))


if __name__ == "__main__":
    main()
