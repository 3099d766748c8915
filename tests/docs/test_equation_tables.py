"""Each README's table *equation, function, departure* names functions and options that exist."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lmedit.options import Options

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(
    file.parent
    for file in (ROOT / "plugins").glob("*/pyproject.toml")
    if "lmedit.methods" in file.read_text(encoding="utf-8")
)
HEADING = "## Equation, function, departure"


def rows_of(readme: Path) -> list[list[str]]:
    """The cells of each row of the table, its head left out."""
    section = readme.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.+)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def functions_of(cell: str) -> list[str]:
    """The dotted names in backticks that are no options."""
    return re.findall(r"(?<!option )`([^`]+)`", cell)


def options_of(cell: str) -> list[str]:
    """The names in backticks after the word "option"."""
    return re.findall(r"(?<=option )`([^`]+)`", cell)


def found(package: str, name: str) -> Any:
    """The value that *name* names: in lmedit, or in the plugin's *package*.

    Raises `LookupError` where there is no such module or name.
    """
    home = [] if name.startswith("lmedit.") else [package]
    parts = [*home, *name.split(".")]
    if len(parts) < 3:
        raise LookupError(f"{name}: name the module too")
    value: Any = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], start=1):
        if not hasattr(value, part):
            try:
                importlib.import_module(".".join(parts[: place + 1]))
            except ImportError:
                raise LookupError(f"{name}: no {part}") from None
        value = getattr(value, part)
    return value


def option_names(package: str) -> set[str]:
    """The options of all classes in the plugin's module of options."""
    module = importlib.import_module(f"{package}.options")
    classes = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Options)]
    return {name for each in classes for name in each.model_fields}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_the_modules_of_the_entry_points_are_the_package(plugin: Path) -> None:
    """So the tables' short names mean `lmedit_NAME.module.function`."""
    text = (plugin / "pyproject.toml").read_text(encoding="utf-8")
    points = tomllib.loads(text)["project"]["entry-points"]["lmedit.methods"]
    assert {module.partition(".")[0] for module in points.values()} == {f"lmedit_{plugin.name}"}


def cases() -> list[Any]:
    return [
        pytest.param(f"lmedit_{plugin.name}", row, id=f"{plugin.name}-{number}")
        for plugin in PLUGINS
        for number, row in enumerate(rows_of(plugin / "README.md"), start=1)
    ]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_readme_has_a_table(plugin: Path) -> None:
    rows = rows_of(plugin / "README.md")
    assert len(rows) > 2
    assert any("equations." in row[1] for row in rows)


@pytest.mark.parametrize(("package", "row"), cases())
def test_a_row_names_what_exists(package: str, row: list[str]) -> None:
    assert len(row) == 3, "a row has three cells"
    functions, options = functions_of(row[1]), options_of(row[1])
    assert functions + options, "a row names a function or an option"
    for name in functions:
        found(package, name)
    assert set(options) <= option_names(package)


def test_a_name_that_does_not_exist_is_seen() -> None:
    assert callable(found("lmedit_rome", "equations.insertion"))
    assert callable(found("lmedit_rome", "lmedit.stats.moments_of"))
    for name in ("equations.nothing", "nowhere.insertion", "insertion"):
        with pytest.raises(LookupError):
            found("lmedit_rome", name)
