"""Ratios that fell: this run against a reference of the same machine.

The first run on a machine is its reference. A ratio that falls by more than a quarter is a warning
the first time, because a busy machine does this too. The second time in a row it is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE = Path(__file__).parent / "results" / "reference.json"
LEAST = 0.75
"""A ratio below this share of its reference has fallen."""


def name_of(machine: Mapping[str, Any]) -> str:
    """The name of a machine, from what `paired.machine` tells."""
    return ", ".join(f"{key} {value}" for key, value in sorted(machine.items()))


def judge(
    known: Mapping[str, Mapping[str, Any]], ratios: Mapping[str, float]
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """The new reference, a line for each ratio that fell once, and for each that fell again.

    *known* has the ``ratio`` by name, and whether it had ``fallen`` in the last run. A ratio that
    this run did not measure stays as it is.
    """
    after, once, again = {name: dict(each) for name, each in known.items()}, [], []
    for name, ratio in ratios.items():
        before = after.setdefault(name, {"ratio": ratio, "fallen": False})
        fallen = ratio < LEAST * before["ratio"]
        if fallen:
            line = f"{name}: {before['ratio']:.3g} fell to {ratio:.3g}"
            (again if before["fallen"] else once).append(line)
        before["fallen"] = fallen
    return after, once, again


def hold(
    machine: Mapping[str, Any],
    ratios: Mapping[str, float],
    file: Path = FILE,
    *,
    anew: bool = False,
) -> tuple[Sequence[str], Sequence[str]]:
    """Judge *ratios* by the reference in *file*, and store the new one; *anew* forgets the old.

    Returns the lines of `judge`.
    """
    stored: dict[str, Any] = {}
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
    name = name_of(machine)
    stored[name], once, again = judge({} if anew else stored.get(name, {}), ratios)
    write_json(file, stored)
    return once, again
