"""Names explain themselves: acts have verbs, and a class name has one meaning."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for pattern in ("core/src", "plugins/*/src", "worlds", "benchmarks", "docs")
    for folder in ROOT.glob(pattern)
    for path in folder.rglob("*.py")
)
PARTICIPLE = re.compile(
    r"_*([a-z]{2,}ed|written|known|shown|held|kept|made|drawn|given|taken|chosen|found|lost|broken|"
    r"hidden|begun|done|said|sent|built|spent|left|meant|worn)(_(by|as|from|to|over|on|out|at|with|in))?"
)
NOT_ACTS = {"need", "seed", "speed", "feed", "embed"}
SAME_INTERFACE = {"case_from", "take_part"}
"""Each case format has the first, and each command with workers the second."""
DOCUMENTED = {"resolved", "prepared_from", "prepared_on"}
"""Methods of `Options` that plugins override; another name would not be called any more."""


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def names_a_state(node: ast.FunctionDef) -> bool:
    """Whether a state is the right name: of a property, a condition, or what holds in a block."""
    decorators = [ast.unparse(each) for each in node.decorator_list]
    result = ast.unparse(node.returns) if node.returns else ""
    return (
        any(each.endswith(("property", "contextmanager", "fixture")) for each in decorators)
        or result == "bool"
        or result.startswith("AbstractContextManager")
    )


def test_no_act_is_named_as_a_state() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, node in functions()
        if PARTICIPLE.fullmatch(node.name)
        and node.name.strip("_") not in NOT_ACTS | DOCUMENTED
        and not names_a_state(node)
    ]
    assert found == [], "give these functions a verb"


@pytest.mark.parametrize("name", ["written", "_opened", "trained_on", "exported", "carried_over"])
def test_participles_are_recognised(name: str) -> None:
    assert PARTICIPLE.fullmatch(name)


@pytest.mark.parametrize("name", ["write", "chosen_options", "open_patch", "shape_of"])
def test_verbs_and_nouns_are_not(name: str) -> None:
    assert not PARTICIPLE.fullmatch(name)


def test_a_public_name_means_one_thing() -> None:
    """Two modules have no class, and no function, of one name; interfaces and hooks do."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        if path.is_relative_to(ROOT / "core" / "src") and "template" not in path.parts:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                name = getattr(node, "name", "_")  # classes and functions have one
                if not name.startswith(("_", "edit_")):
                    homes[name].append(path.relative_to(ROOT).as_posix())
    twice = {
        name: places
        for name, places in homes.items()
        if len([place for place in places if "/cli/" not in place]) > 1
    }
    assert twice.keys() <= SAME_INTERFACE, twice


def importers(module: str, names: set[str]) -> set[str]:
    """The files of the core that import one of *names* from *module*."""
    core = ROOT / "core" / "src" / "lmedit"
    return {
        path.relative_to(core).as_posix()
        for path in core.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == module
        if names & {each.name for each in node.names}
    }


def test_one_way_leads_to_an_editor() -> None:
    """`plan.editor_for` alone decides about a preparation; one rule chooses among stored ones."""
    users = importers("lmedit.pipeline", {"prepare", "ready"})
    assert users == {"plan.py", "__init__.py"}  # `lmedit.prepare` is a public name
    assert importers("lmedit.preparation", {"find_prepared", "shipped_prepared"}) == {"pipeline.py"}
    assert importers("lmedit.plan", {"editor_for"}) == {"api/editors.py"}
    assert importers("lmedit.plan", {"Plan"}) >= {"cli/common.py", "actions/compare.py"}
