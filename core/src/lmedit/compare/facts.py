"""The facts of a run that was planned: what all its shards must have in common.

They are stored beside the results, as texts by name. Runs with other facts are not merged.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lmedit.compare.comparison import editor_facts, protocol_facts
from lmedit.storage.code import core_code
from lmedit.storage.json_files import dump_json, parse_json
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.case_scores import Scoring
    from lmedit.models import Lm
    from lmedit.pipeline import Editor

PACKAGES = ("torch", "transformers", "tokenizers")
PLAN, SHARD, FINISHED = "plan", "shard", "finished shard "
"""The names of facts: the plan as JSON, the shard of this folder, and a shard that is finished."""
SHOWN = 40
"""How many characters of a value a message shows."""


def versions() -> dict[str, str]:
    """The versions of lmedit and of the libraries that compute."""
    return {"lmedit": __version__} | {name: version(name) for name in PACKAGES}


def common_facts(
    lm: Lm, cases: CaseSet, editors: Sequence[Editor], scoring: Scoring, seed: int
) -> dict[str, str]:
    """The facts of a comparison on *cases*, by name."""
    scoring = replace(scoring, only=cases.only.word if cases.only else None)
    shared = protocol_facts(lm, scoring)
    several: dict[str, Any] = {
        "versions": versions() | {"the code of lmedit": core_code()},
        "model": lm.digest,
        "model with its config and tokenizer": shared["base"],
        "cases": cases.digest,
        "protocol": shared["protocol"],
        "way of asking": shared["asking"],
        f"data of the measures, seed {seed}": shared["resources"],
    }
    several |= {f"method {e.name}, seed {seed}": editor_facts(e) for e in editors}
    return {name: as_fact(value) for name, value in several.items()}


def as_fact(value: Any) -> str:
    """*value* as the text of a fact: equal values give equal texts."""
    return dump_json(value, indent=None, ordered=True)


def is_own(name: str) -> bool:
    """Whether the fact *name* tells of one folder only, so that folders may differ in it."""
    return name == SHARD


def find_conflict(
    one: Mapping[str, str], other: Mapping[str, str], folders: tuple[Path, Path]
) -> str | None:
    """How two runs, in *folders*, differ in a fact that both have; None if they do not."""
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name] and not is_own(name):
            part, mine, theirs = _first_difference(one[name], other[name])
            where = f"{name}: {part}" if part else name
            return (
                f"{folders[0]} and {folders[1]} are not runs of the same comparison; the {where} "
                f"is {mine} in the first and {theirs} in the second"
            )
    return None


def _first_difference(one: str, other: str) -> tuple[str, str, str]:
    """The first part in which two facts differ: its name, and both values, shortened."""
    try:
        mine, theirs = parse_json(one, nan_is_none=True), parse_json(other, nan_is_none=True)
    except ValueError:
        return "", one[:SHOWN], other[:SHOWN]
    path: list[str] = []
    while isinstance(mine, dict) and isinstance(theirs, dict):
        name = _differing(sorted({*mine, *theirs}), mine, theirs)
        path.append(name)
        mine, theirs = mine.get(name), theirs.get(name)
    return " ".join(path), _short(mine), _short(theirs)


def _differing(names: Iterable[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return next((name for name in names if one.get(name) != other.get(name)), "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else as_fact(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
