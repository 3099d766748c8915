"""Count the house: rooms, floors, imports between rooms, circles, and upward imports.

    python tests/architecture/count_rooms.py            # imports that run
    python tests/architecture/count_rooms.py --types    # imports for type checking too

A room is a child of the package `lmedit`: a folder or a module. A floor is a step of the longest
chain of rooms that import one another. A circle is a set of rooms that reach one another. An
upward import goes from a lower floor to an upper one, as `pyproject.toml` declares the floors.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import grimp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lmedit"
NO_SOURCE = "lmedit.actions.template"
"""Files that `lmedit new` copies; nothing imports them."""
AT_MOST = {"rooms": 39, "floors": 16, "arrows": 238, "imports": 1090}
"""The house with the imports for type checking, with little room to grow."""

Import = tuple[str, str]


def declared_floors(root: Path = ROOT, package: str = PACKAGE) -> list[set[str]]:
    """Return the floors of the import contract in `pyproject.toml`, the lowest first."""
    meta = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = meta["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers")
    floors = [{name.strip() for name in re.split("[:|]", layer)} for layer in reversed(layers)]
    return [{name.removeprefix(f"{package}.") for name in floor} for floor in floors]


@dataclass(frozen=True)
class House:
    """The rooms of a package, by their imports."""

    rooms: frozenset[str]
    imports: frozenset[Import]
    """The imports of modules: who imports, and who is imported."""
    declared: tuple[frozenset[str], ...] = ()
    """The floors of the contract, the lowest first."""

    @classmethod
    def of(cls, imports: Iterable[Import], declared: Iterable[Iterable[str]] = ()) -> House:
        """Build a house of the *imports* of modules; its rooms are those that these name."""
        pairs = frozenset(imports)
        rooms = {room(name) for pair in pairs for name in pair} - {""}
        return cls(frozenset(rooms), pairs, tuple(map(frozenset, declared)))

    @cached_property
    def between(self) -> set[Import]:
        """The imports of modules that lead from one room to another."""
        return {
            (module, other)
            for module, other in self.imports
            if room(module) and room(other) and room(module) != room(other)
        }

    @cached_property
    def arrows(self) -> set[Import]:
        """The pairs of rooms of which the first imports the second."""
        return {(room(module), room(other)) for module, other in self.between}

    @cached_property
    def reach(self) -> Mapping[str, set[str]]:
        """For each room, all rooms that it imports, directly or through others."""
        found = {name: {b for a, b in self.arrows if a == name} for name in self.rooms}
        for middle in self.rooms:
            for name in self.rooms:
                if middle in found[name]:
                    found[name] |= found[middle]
        return found

    @cached_property
    def circles(self) -> set[frozenset[str]]:
        """The sets of rooms that reach one another."""
        return {
            frozenset(b for b in self.reach[a] if a in self.reach[b])
            for a in self.rooms
            if a in self.reach[a]
        }

    @cached_property
    def floors(self) -> list[set[str]]:
        """The rooms by floor, the lowest first; the rooms of a circle share a floor."""
        home = {name: min(circle) for circle in self.circles for name in circle}
        below: dict[str, set[str]] = {home.get(name, name): set() for name in self.rooms}
        for a, b in self.arrows:
            below[home.get(a, a)] |= {home.get(b, b)} - {home.get(a, a)}
        height: dict[str, int] = {}
        for name in TopologicalSorter(below).static_order():
            height[name] = max((height[other] + 1 for other in below[name]), default=0)
        found: list[set[str]] = [set() for _ in range(max(height.values(), default=-1) + 1)]
        for name in self.rooms:
            found[height[home.get(name, name)]].add(name)
        return found

    @cached_property
    def upward(self) -> set[Import]:
        """The arrows that lead to an upper floor of the contract."""
        height = {name: at for at, floor in enumerate(self.declared) for name in floor}
        known = ((a, b) for a, b in self.arrows if a in height and b in height)
        return {(a, b) for a, b in known if height[b] > height[a]}

    def figures(self) -> dict[str, int]:
        """Return all numbers of the house."""
        return {
            "rooms": len(self.rooms),
            "floors": len(self.floors),
            "arrows": len(self.arrows),
            "imports": len(self.between),
            "circles": len(self.circles),
            "rooms in circles": sum(map(len, self.circles)),
            "upward": len(self.upward),
        }


def room(module: str) -> str:
    """Return the room of *module*; the package itself has none."""
    return module.split(".")[1] if "." in module else ""


def house(*, types: bool) -> House:
    """Return the house as it stands; *types* counts the imports for type checking too."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=not types, cache_dir=None)
    modules = {name for name in graph.modules if not name.startswith(NO_SOURCE)}
    imports = {
        (module, other)
        for module in modules
        for other in graph.find_modules_directly_imported_by(module) & modules
    }
    rooms = frozenset(map(room, graph.find_children(PACKAGE)))
    return House(rooms, frozenset(imports), tuple(map(frozenset, declared_floors())))


MEANING = {
    "rooms": "folders and modules in the package",
    "floors": "rooms of the longest chain of imports",
    "arrows": "pairs of rooms of which one imports the other",
    "imports": "pairs of modules of two rooms of which one imports the other",
    "circles": "sets of rooms that reach one another",
    "rooms in circles": "",
    "upward": "arrows to an upper floor of the contract",
}


def main() -> None:
    """Print the figures, the floors, and what breaks the rules."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", action="store_true", help="count imports for type checking too")
    counted = house(types=parser.parse_args().types)
    for name, number in counted.figures().items():
        print(f"{name:<17}{number:>4}  {MEANING[name]}".rstrip())
    print()
    for height, floor in reversed(list(enumerate(counted.floors))):
        print(f"floor {height:>2}  {', '.join(sorted(floor))}")
    for circle in sorted(map(sorted, counted.circles)):
        print(f"circle: {', '.join(circle)}")
    for lower, upper in sorted(counted.upward):
        print(f"upward: {lower} imports {upper}")


if __name__ == "__main__":
    main()
