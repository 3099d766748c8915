"""The house of the core: no circle, no import upwards, and no more rooms than it has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from count_rooms import AT_MOST, ROOT, House, declared_floors, house, room

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole() -> House:
    """The house with the imports for type checking."""
    return house(types=True)


def test_no_circle_and_no_import_upwards_even_for_types(whole: House) -> None:
    assert whole.circles == set()
    assert whole.upward == set()


@pytest.mark.parametrize("name", AT_MOST)
def test_the_house_does_not_grow_unseen(whole: House, name: str) -> None:
    assert whole.figures()[name] <= AT_MOST[name]


def test_the_design_page_has_these_limits() -> None:
    page = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z ]+) \| [^|]+ \| (\d+) \|$", page, re.MULTILINE))
    assert rows == {
        "rooms": str(AT_MOST["rooms"]),
        "floors": str(AT_MOST["floors"]),
        "pairs of rooms of which one imports the other": str(AT_MOST["arrows"]),
        "circles": "0",
        "imports to an upper floor": "0",
    }


def test_imports_that_run_are_among_all_imports(whole: House) -> None:
    running = house(types=False)
    assert running.imports < whole.imports
    assert ("lmedit.edits.patches", "lmedit.storage.tensors") in running.imports
    assert running.rooms == whole.rooms


def test_every_room_has_a_floor_in_the_contract(whole: House) -> None:
    declared = set().union(*declared_floors())
    assert declared | {"_moved"} == whole.rooms


def test_a_small_house_is_counted() -> None:
    imports = {
        ("p.roof", "p.hall.door"),
        ("p.roof", "p.hall.lamp"),
        ("p.hall.door", "p.hall.lamp"),
        ("p.hall.lamp", "p.cellar"),
        ("p", "p.roof"),
    }
    small = House.of(imports, [{"cellar"}, {"roof"}, {"hall"}])
    assert small.rooms == {"roof", "hall", "cellar"}
    assert small.floors == [{"cellar"}, {"hall"}, {"roof"}]
    assert small.arrows == {("roof", "hall"), ("hall", "cellar")}
    assert len(small.between) == 3
    assert small.circles == set()
    assert small.upward == {("roof", "hall")}


def test_a_circle_is_found_and_shares_a_floor() -> None:
    imports = {("p.a", "p.b"), ("p.b", "p.c"), ("p.c", "p.a"), ("p.c", "p.low"), ("p.top", "p.a")}
    turning = House.of(imports)
    assert turning.circles == {frozenset("abc")}
    assert turning.floors == [{"low"}, {"a", "b", "c"}, {"top"}]
    assert turning.figures()["rooms in circles"] == 3


def test_the_package_itself_is_no_room() -> None:
    assert [room(name) for name in ("lmedit", "lmedit.types", "lmedit.edits.lora")] == [
        "",
        "types",
        "edits",
    ]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts, with the core that lies in *folder*."""
    command = ["lint-imports", "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_module_without_a_floor_breaks_the_contract(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "template")
    shutil.copytree(ROOT / "core" / "src" / "lmedit", tmp_path / "lmedit", ignore=ignore)
    before = lint(tmp_path)
    assert before.returncode == 0, before.stdout
    (tmp_path / "lmedit" / "loose.py").write_text("")
    after = lint(tmp_path)
    assert after.returncode == 1
    assert "- lmedit.loose" in after.stdout
