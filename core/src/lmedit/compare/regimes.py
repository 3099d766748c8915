"""Many edits in one model: all computed on the base (batch), one after the other (sequential), or
some at a time (batched).

At size N the model holds the first N edits, and all N cases are scored on it. The curve over N
shows how much is retained. A method with a joint update computes one change for the facts of a
part. A finished edit is a patch file in the run folder and a row in the store. So a run continues
after an interruption, and several processes may share it.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lmedit.compare.asking import as_asked
from lmedit.compare.candidates import BASE, Candidate, of_editor
from lmedit.compare.comparison import Compared, Outcome, results_head
from lmedit.compare.heights import Height, Kind, Regime
from lmedit.compare.piles import PATCHES, Pile
from lmedit.compare.rows import PARTS, summary_row
from lmedit.compare.store import RunStore
from lmedit.errors import CasesError
from lmedit.metrics.counterfact import harmonic_mean
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.worker import Ended
    from lmedit.models import Lm
    from lmedit.pipeline import Editor

__all__ = ["PATCHES", "Height", "Kind", "Regime", "collapse_points", "pile_up"]

FALLEN = 0.6
"""A method has collapsed at the first size with less than this part of its first S."""


def pile_up(  # noqa: PLR0913
    lm: Lm,
    cases: CaseSet,
    editors: Sequence[Editor],
    folder: Path,
    seed: int,
    scoring: Scoring,
    regime: Regime,
    baselines: Sequence[Candidate] = (),
    *,
    after: Ended | None = None,
    takes: Callable[[str], bool] = lambda _: True,
) -> Compared:
    """Compare those of *editors* and *baselines* under *regime* whose name the shard *takes*.

    *scoring* must have held-out text. A row is a method's largest pile. *after* tells that a
    process ended while it did this before. Raises the errors of `comparison.compare`.
    """
    cases = as_asked(lm, cases)
    scoring = replace(scoring, only=cases.only.word if cases.only else None)
    good = cases.good[: max(regime.sizes)]
    if not good:
        raise CasesError(f"{cases.name} holds no case that can be run; correct its records")
    several = [Candidate(BASE), *map(of_editor, editors), *baselines]
    candidates = [each for each in several if takes(each.name)]
    with RunStore(folder) as store:
        write_json(folder / "cases.json", [case.model_dump(mode="json") for case in good])
        piles = {}
        for each in candidates:
            ended = None if each.name == BASE else after
            pile = Pile(store, lm, each, good, scoring, regime, folder, after=ended)
            piles[each.name] = pile.heights()
    edited = [each for each in candidates if each.name != BASE]
    curve = [_point(each, height) for each in edited for height in piles[each.name]]
    results = {
        **results_head(lm, cases, seed, scoring, edited),
        "regime": asdict(regime),
        "rows": [_row(each, piles[each.name][-1], cases, len(good)) for each in candidates],
        "curve": curve,
        "collapse_points": collapse_points(curve),
    }
    whole = {name: pile[-1].outcomes for name, pile in piles.items() if pile[-1].size == len(good)}
    return Compared(results, whole)


def _row(candidate: Candidate, height: Height, cases: CaseSet, planned: int) -> dict[str, Any]:
    broken = [Outcome(candidate.name, i.id, None, failure=str(i)) for i in cases.broken]
    row = summary_row(candidate.name, [*height.outcomes, *broken], candidate.editor)
    if height.size < planned:
        row["keys"] = []  # its cases differ from those of the other rows
    return (
        row
        | height.model
        | dict(height.told)
        | {"size": height.size, "collapsed": height.collapsed}
    )


def _point(candidate: Candidate, height: Height) -> dict[str, Any]:
    """A point of the curve: a row without the values of single results."""
    row = summary_row(candidate.name, height.outcomes, candidate.editor) | height.model
    row |= height.told
    left = {"keys", "failures", "unsound", "options", "version"}
    return {
        "size": height.size,
        "collapsed": height.collapsed,
        "computed": height.computed,
        "right_after": _right_after(candidate, height),
    } | {name: value for name, value in row.items() if name not in left}


def _right_after(candidate: Candidate, height: Height) -> dict[str, float | None] | None:
    """S, ES, PS and NS of each case right after its own edit; None if that was not measured."""
    if height.right_after is None:
        return None
    row = summary_row(candidate.name, height.right_after, candidate.editor)
    scores = {part: row[part] for part in PARTS}
    return {"S": harmonic_mean([*scores.values()]), **scores}


def collapse_points(curve: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """For each method the first size at which S is below `FALLEN` of its first S; else None."""
    found: dict[str, int | None] = {}
    first: dict[str, float] = {}
    for point in curve:
        method, S = point["method"], point["S"]
        found.setdefault(method, None)
        if S is not None:
            first.setdefault(method, S)
        low = S is None or FALLEN * first[method] > S
        if method in first and found[method] is None and low:
            found[method] = point["size"]
    return found
