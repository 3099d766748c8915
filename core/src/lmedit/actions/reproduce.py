"""Run a comparison again as its results say: read how it was made, check it, compare the tables."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.actions.compare import Measuring
from lmedit.actions.plan_values import LARGEST, check_fields
from lmedit.compare.facts import versions
from lmedit.compare.measures import measure
from lmedit.compare.table import align
from lmedit.errors import LmeditError, RunError, UsageError
from lmedit.plan import Plan
from lmedit.storage.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATHS = frozenset({"heldout", "references", "include_path"})


def origin(plan: Plan, measuring: Measuring, seeds: Sequence[int]) -> dict[str, Any]:
    """How a comparison was made, as JSON values: versions, the command's values, the seeds."""
    values = {
        "plan": asdict(plan),
        "measuring": asdict(measuring),
    }
    return {
        **_versions(),
        **{part: {k: _plain(v) for k, v in some.items()} for part, some in values.items()},
        "seeds": list(seeds),
    }


def _versions() -> dict[str, str]:
    """The versions that may change a score."""
    return versions() | {"python": platform.python_version()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def read_origin(path: Path) -> dict[str, Any]:
    """The results in *path*, a file or a run folder. Raises `RunError` if they cannot be used."""
    file = path / "results.json" if path.is_dir() else path
    try:
        found = read_json(file, nan_is_none=True)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}; give a results.json of compare") from error
    if not isinstance(found, dict) or not isinstance(found.get("made_by"), dict):
        raise RunError(f"{file} does not say how it was made; give results of a newer lmedit")
    return found


def plan_of_results(old: Mapping[str, Any]) -> tuple[Plan, Measuring, tuple[int, ...]]:
    """The plan, the measures and the seeds of *old*. Raises `RunError` if they do not fit."""
    try:
        return plan_of_values(old["made_by"])
    except ValueError as error:
        raise RunError(
            f"made_by of the results is damaged ({error}); give results of this version"
        ) from error


def plan_of_values(made: Mapping[str, Any]) -> tuple[Plan, Measuring, tuple[int, ...]]:
    """The plan, the measures and the seeds in the values of `origin`; raises `ValueError`."""
    try:
        plan = Plan(**_values(made["plan"], Plan))
        measuring = Measuring(**_values(made["measuring"], Measuring))
        seeds = _tuples(made["seeds"])
        if any(type(seed) is not int or not 0 <= seed < LARGEST for seed in seeds):
            raise ValueError(f"{str(seeds)[:40]} are not seeds")
        return plan, measuring, seeds
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise ValueError(str(error)) from error


def _values(found: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The JSON values *found* as arguments of *kind*: lists become tuples, names become paths."""
    values = {name: _tuples(value) for name, value in found.items()}
    for name in PATHS & set(values):
        values[name] = None if values[name] is None else Path(values[name])
    if "plugins" in values:
        values["plugins"] = tuple(map(Path, values["plugins"]))
    check_fields(values, kind)
    return values


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def tell_versions(old: Mapping[str, Any]) -> list[str]:
    """One line for each version that differs from that of *old*."""
    made = old["made_by"]
    return [
        f"{name} is {mine}, and the results were made with {made.get(name)}"
        for name, mine in _versions().items()
        if made.get(name) != mine
    ]


def check_sources(old: Mapping[str, Any], plan: Plan, measuring: Measuring) -> None:
    """Raise an error if the methods, the cases or the model are not those of *old*."""
    methods = [row["method"] for row in old["rows"] if "version" in row]
    try:
        known = {loaded.name for loaded in plan.load_methods()}
        cases = measuring.cases(plan, plan.outline() if measuring.preset else None)
    except LmeditError as error:
        raise RunError(f"the results cannot be reproduced: {error}") from error
    if missing := [name for name in methods if name not in known]:
        raise RunError(f"method {missing[0]!r} is not installed here; install it")
    lm = plan.load_model()
    for what, mine in (("cases", cases.digest), ("model", lm.digest)):
        theirs = str(old[what].get("digest"))
        if mine != theirs:
            raise RunError(
                f"the {what} {old[what]['name']!r} differ here: {mine[:12]}, and the results have "
                f"{theirs[:12]}; give the same {what}"
            )


def compare_tables(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Both tables as lines, and whether they agree: every score to its last shown digit."""
    rows = {row["method"]: row for row in new["rows"]}
    lines = [["method", "score", "before", "now", ""]]
    same, count = True, 0
    for row in old["rows"]:
        mine = rows.get(row["method"])
        if mine is None:
            lines.append([row["method"], "", "", "", "missing"])
            same = False
            continue
        for name, before in row.items():
            known = measure(name)
            if known is None or not known.protocol or before is None:
                continue
            now, count = mine.get(name), count + 1
            equal = now is not None and abs(now - before) <= 1.001 * 10.0**-known.digits
            same = same and equal
            cells = [f"{v:.{known.digits}f}" if v is not None else "-" for v in (before, now)]
            lines.append([row["method"], known.label, *cells, "" if equal else "differs"])
        if row.get("options") != mine.get("options"):
            lines.append([row["method"], "options", "", "", "differs"])
            same = False
    last = f"all {count} scores agree" if same else "the runs differ"
    return [*align(lines), last], same
