"""The bounds that packages declare, the constraints, and the page about them are the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "core" / "src" / "lmedit" / "actions" / "template"
MEMBERS = [
    ROOT / "core",
    *(p.parent for p in ROOT.glob("worlds/*/pyproject.toml")),
    *(ROOT / "plugins").iterdir(),
]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def project(member: Path) -> Any:
    return tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_a_new_method_asks_for_the_same_versions_as_ours() -> None:
    ours, new = (
        {each for each in project(at)["dependencies"] if each.startswith(("torch", "lmedit>"))}
        for at in (ROOT / "plugins" / "ft", TEMPLATE)
    )
    assert ours == new
    (torch,) = (each for each in ours if each.startswith("torch"))
    tutorial = (ROOT / "docs" / "tutorials" / "writing-a-method.md").read_text(encoding="utf-8")
    assert re.findall(r'"(torch>=[\d.]+)"', tutorial) == [torch]


def bounds() -> dict[str, set[str]]:
    """The lower bounds of all packages by library, our own left out."""
    found: dict[str, set[str]] = {}
    for member in MEMBERS:
        extras = project(member).get("optional-dependencies", {}).values()
        for requirement in sum(extras, project(member)["dependencies"]):
            name, _, rest = requirement.partition(">=")
            if not name.startswith("lmedit"):
                found.setdefault(name, set()).add(rest.partition(",")[0])
    return found


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    oldest = pins("constraints-oldest.txt")
    assert {name: {oldest[name]} for name in bounds()} == bounds()


def test_what_is_no_bound_is_a_tool_as_pinned_elsewhere() -> None:
    newest = pins("constraints.txt")
    tools = {n: v for n, v in pins("constraints-oldest.txt").items() if n not in bounds()}
    assert tools.pop("pyparsing")
    assert {name: newest[name] for name in tools} == tools


def test_the_page_has_both_ends() -> None:
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    assert {"torch", "transformers", "pydantic", "pluggy", "click"} <= {name for name, *_ in rows}
    assert rows == [(name, oldest[name], newest[name]) for name, *_ in rows]
