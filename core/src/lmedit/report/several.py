"""Several runs side by side, and what may not be compared between them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lmedit.report.read import BASE, FinishedRun, Results, read_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OF_ONE_RUN = (
    "differences",
    "claims",
    "curve",
    "by_seed",
    "collapse_points",
    "published",
    "abilities",
)
"""Keys of the results that say nothing about several runs together."""


def side_by_side(folders: Sequence[Path]) -> tuple[FinishedRun, list[str]]:
    """The rows of the runs in *folders* as one run, and one sentence for each obstacle.

    A row's name is RUN/METHOD. Numbers of a measure that two runs took by other protocols stay in
    the table; a sentence names the measure. Raises `RunError` if a folder holds no finished run.
    """
    runs = [read_run(folder) for folder in folders]
    names = _names(folders)
    rows = [
        {**row, "method": f"{name}/{row['method']}", "keys": []}
        for name, run in zip(names, runs, strict=True)
        for row in run.raw["rows"]
    ]
    head: dict[str, Any] = {
        **runs[0].raw,
        "model": _join_heads(runs, "model"),
        "cases": _join_heads(runs, "cases"),
        "rows": rows,
        "judged": [
            {**each, "rows": [{**r, "method": f"{name}/{r['method']}"} for r in each["rows"]]}
            for name, run in zip(names, runs, strict=True)
            for each in run.raw.get("judged", ())
        ],
    }
    for name in OF_ONE_RUN:
        head.pop(name, None)
    pairs = combinations(zip(names, runs, strict=True), 2)
    told = [line for (a, one), (b, other) in pairs for line in obstacles(a, one, b, other)]
    return FinishedRun(Results.model_validate(head), head), told


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of the runs: the folders' own, numbered if two are equal."""
    found = [folder.resolve().name for folder in folders]
    count = Counter(found)
    return [f"{name}#{number}" if count[name] > 1 else name for number, name in enumerate(found, 1)]


def _join_heads(runs: Sequence[FinishedRun], key: str) -> dict[str, Any]:
    values = [run.raw[key] for run in runs]
    names = dict.fromkeys(str(value["name"]) for value in values)
    return {**values[0], "name": " and ".join(names)}


def obstacles(a: str, one: FinishedRun, b: str, other: FinishedRun) -> list[str]:
    """One sentence for each thing that forbids to compare numbers of two runs, with the reason."""
    mine, theirs, both = one.raw, other.raw, f"{a} and {b}"
    found = []
    for key, what in (("model", "models"), ("cases", "cases")):
        pair = [str(raw[key].get("digest", "")) for raw in (mine, theirs)]
        if pair[0] != pair[1]:
            found.append(
                f"{both}: no score may be compared, because the {what} differ "
                f"({_short(mine[key])}, {_short(theirs[key])})"
            )
    edited = [_count_cases(raw) for raw in (mine, theirs)]
    if not found and edited[0] != edited[1]:
        found.append(
            f"{both}: no score may be compared, because one has {edited[0]} cases, and the other "
            f"{edited[1]}"
        )
    picked = [(raw["cases"].get("only") or {}).get("word") for raw in (mine, theirs)]
    if picked[0] != picked[1]:
        told = " and ".join(f"--only {word}" if word else "no --only" for word in picked)
        found.append(
            f"{both}: no score may be compared, because other answers pick their cases ({told})"
        )
    for key, what in (("asking", "prompts are asked"), ("regime", "edits meet one model")):
        if mine.get(key) != theirs.get(key):
            found.append(f"{both}: no score may be compared, because {what} in another way")
    found += [
        f"{both}: {name} may not be compared, because its protocol differs"
        for name in _other_protocols(mine, theirs)
    ]
    for name, alone in ((a, _only_in(mine, theirs)), (b, _only_in(theirs, mine))):
        if alone:
            found.append(f"{both}: only {name} measures {', '.join(alone)}")
    if mine.get("seeds", mine.get("seed")) != theirs.get("seeds", theirs.get("seed")):
        found.append(f"{both}: the seeds differ; compare only beyond the spread over seeds")
    return found


def _count_cases(raw: Mapping[str, Any]) -> int:
    return next((row["n"] for row in raw["rows"] if row["method"] == BASE), 0)


def _short(thing: Mapping[str, Any]) -> str:
    return f"{thing['name']} {str(thing.get('digest', ''))[:12]}".strip()


def _other_protocols(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    one, other = mine.get("protocol", {}), theirs.get("protocol", {})
    shared = [name for name in one if name in other and name != "only"]
    return [name for name in shared if one[name] != other[name]]


SETTINGS = frozenset({"only", "wild_prompt"})
"""Keys of a protocol that name no measure."""


def _only_in(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The measures in the protocol of *mine* that *theirs* lacks."""
    other = theirs.get("protocol", {})
    return [name for name in mine.get("protocol", {}) if name not in other and name not in SETTINGS]
