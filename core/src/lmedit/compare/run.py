"""Run a comparison: for every method and case edit, score, revert; a failure is a result."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.case_scores import CaseScores, score_case
from lmedit.compare.rows import summary_row
from lmedit.errors import BrokenPluginError, LmeditError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case

BASE = "base"


@dataclass(frozen=True)
class Outcome:
    """One method on one case. A failed edit has a reason, and the unedited model's scores."""

    method: str
    case: str
    scores: CaseScores | None
    seconds: float | None = None
    failure: str | None = None

    def as_line(self) -> str:
        """The outcome as one line of JSON."""
        scores = self.scores.as_dict() if self.scores else None
        return json.dumps({**self.__dict__, "scores": scores}, ensure_ascii=False)


def compare(
    lm: Lm, cases: CaseSet, editors: Sequence[Editor], folder: Path, seed: int
) -> dict[str, Any]:
    """Compare *editors* on *cases*; writes into *folder* as it goes, returns design.md's object.

    `cases.jsonl` gets a line for each finished (method, case), `results.json` the object. Raises
    `BrokenPluginError` where a method leaves the model changed.
    """
    digest = lm.digest
    base = _base_outcomes(lm, cases)
    runs = {BASE: base}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(outcome.as_line() + "\n" for outcome in base)
        for editor in editors:
            outcomes = runs[editor.name] = []
            for outcome in _outcomes(lm, cases, editor, base):
                lines.write(outcome.as_line() + "\n")
                lines.flush()
                outcomes.append(outcome)
            if lm.weights_digest() != digest:
                raise BrokenPluginError(
                    f"method {editor.name!r} changed the model outside apply and revert; "
                    "its results and later ones are dropped"
                )
    by_name = {editor.name: editor for editor in editors}
    return {
        "model": {"name": lm.name, "digest": digest},
        "cases": {"name": cases.name, "digest": cases.digest, "n": len(cases.items)},
        "seed": seed,
        "rows": [summary_row(name, outs, by_name.get(name)) for name, outs in runs.items()],
    }


def _base_outcomes(lm: Lm, cases: CaseSet) -> list[Outcome]:
    """The unedited model's scores, and one failure for each broken record."""
    good = [
        Outcome(BASE, case.id, score_case(lm, case)) for case in _with_progress(cases.good, BASE)
    ]
    return [*good, *_broken(BASE, cases)]


def _broken(method: str, cases: CaseSet) -> list[Outcome]:
    return [Outcome(method, item.id, None, failure=str(item)) for item in cases.broken]


def _outcomes(lm: Lm, cases: CaseSet, editor: Editor, base: Sequence[Outcome]) -> Iterator[Outcome]:
    unedited = {outcome.case: outcome.scores for outcome in base}
    for case in _with_progress(cases.good, editor.name):
        try:
            yield edit_case(lm, case, editor)
        except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
            failure = str(error) if isinstance(error, LmeditError) else repr(error)
            yield Outcome(editor.name, case.id, unedited[case.id], failure=failure)
    yield from _broken(editor.name, cases)


def edit_case(lm: Lm, case: Case, editor: Editor) -> Outcome:
    """Edit, score, revert; `seconds` covers computing and applying, not the scoring."""
    started = time.perf_counter()
    update = editor.compute(case.request)
    computed = time.perf_counter() - started
    with editor.applied(update):
        scores = score_case(lm, case)
    return Outcome(editor.name, case.id, scores, computed)


def _with_progress(cases: Sequence[Case], what: str) -> Iterator[Case]:
    """The cases, with a bar on stderr where that is a terminal."""
    yield from tqdm(cases, desc=what, unit="case", disable=None, leave=False)
