"""Many edits in one model: all computed on the base (batch), or each on the last (sequential).

At size N the model holds the first N edits, and all N cases are scored on it. The curve over N
shows how much is retained. A finished edit is a patch file in the run folder and a row in the
store. So a run continues after an interruption, and several processes may share it.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from lmedit.compare.asking import as_asked, asking_of
from lmedit.compare.candidates import BASE, Candidate, of_editor
from lmedit.compare.comparison import Outcome, differences, editor_facts, read_outcome, results_head
from lmedit.compare.measures import protocol
from lmedit.compare.result import Result
from lmedit.compare.rows import summary_row
from lmedit.compare.store import RunStore
from lmedit.compare.worker import (
    POLL_SECONDS,
    compute_update,
    failure_of,
    keep_base,
    load_again,
    store_result,
)
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import ModelChangedError
from lmedit.metrics.weights import drift, patch_bytes, relative_norms
from lmedit.storage.cache import key_of
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit.cases import CaseSet
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.store import Stored
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Site, Update

Kind = Literal["batch", "sequential"]
PATCHES = "patches"
OF_MODEL = "the model"
"""The case id of scores that are measured once for the whole pile."""


@dataclass(frozen=True)
class Regime:
    """How edits pile up, at which sizes they are scored, and when a model has collapsed.

    A model has collapsed if its perplexity on held-out text is above `collapse` times the base's.
    With `stop`, a method stops editing when the model has collapsed.
    """

    kind: Kind
    sizes: tuple[int, ...]
    collapse: float = 10.0
    stop: bool = False


@dataclass(frozen=True)
class Height:
    """A pile of one size: the outcomes of its cases, the model's scores, whether it collapsed."""

    size: int
    outcomes: list[Outcome]
    model: dict[str, float | None]
    collapsed: bool


def pile_up(
    lm: Lm,
    cases: CaseSet,
    editors: Sequence[Editor],
    folder: Path,
    seed: int,
    scoring: Scoring,
    regime: Regime,
    baselines: Sequence[Candidate] = (),
) -> dict[str, Any]:
    """Compare *editors* and *baselines* under *regime*; return the results with their `curve`.

    *scoring* must have held-out text. A row is a method's largest pile. It raises the errors of
    `comparison.compare`.
    """
    cases = as_asked(lm, cases)
    good = cases.good[: max(regime.sizes)]
    candidates = [
        candidate for candidate in (*map(of_editor, editors), *baselines) if candidate.editor_of
    ]
    with RunStore(folder) as store:
        write_json(folder / "cases.json", [case.model_dump(mode="json") for case in good])
        base = _Pile(store, lm, Candidate(BASE), good, scoring, regime, folder).heights()[-1]
        piles = {
            candidate.name: _Pile(store, lm, candidate, good, scoring, regime, folder).heights()
            for candidate in candidates
        }
    highest = {BASE: (Candidate(BASE), base)}
    highest |= {candidate.name: (candidate, piles[candidate.name][-1]) for candidate in candidates}
    rows = [_row(candidate, height, cases, len(good)) for candidate, height in highest.values()]
    full = {
        name: heights[-1].outcomes
        for name, heights in piles.items()
        if heights[-1].size == len(good)
    }
    return {
        **results_head(lm, cases, seed, scoring, candidates),
        "regime": asdict(regime),
        "rows": rows,
        "curve": [
            _point(candidate, height)
            for candidate in candidates
            for height in piles[candidate.name]
        ],
        "differences": differences(full, seed),
    }


def _row(candidate: Candidate, height: Height, cases: CaseSet, planned: int) -> dict[str, Any]:
    broken = [Outcome(candidate.name, i.id, None, failure=str(i)) for i in cases.broken]
    row = summary_row(candidate.name, [*height.outcomes, *broken], candidate.editor)
    if height.size < planned:
        row["keys"] = []  # its cases differ from those of the other rows
    return row | height.model | {"size": height.size, "collapsed": height.collapsed}


def _point(candidate: Candidate, height: Height) -> dict[str, Any]:
    """A point of the curve: a row without the values of single results."""
    row = summary_row(candidate.name, height.outcomes, candidate.editor) | height.model
    left = {"keys", "failures", "options", "version"}
    return {"size": height.size, "collapsed": height.collapsed} | {
        name: value for name, value in row.items() if name not in left
    }


@dataclass
class _Pile:
    """One candidate's edits in one model, in the order of the cases."""

    store: RunStore
    lm: Lm
    candidate: Candidate
    cases: Sequence[Case]
    scoring: Scoring
    regime: Regime
    folder: Path
    edits: list[Stored] = field(default_factory=list)
    mine: list[str] = field(default_factory=list)
    failed: str | None = None
    """The reason why none of its edits counts: it changed the model."""

    def heights(self) -> list[Height]:
        """Score the pile at each size. Afterwards the model is the base again, checked by hash."""
        try:
            with keep_base(self.store, self.lm, self.candidate.name, self.mine):
                return self._heights() if self.candidate.editor_of else [self._base()]
        except ModelChangedError as error:
            load_again(self.lm, error)
            self.failed = error.what
            self.edits = []
            return self._heights()

    def _base(self) -> Height:
        before = self.scoring.before(self.lm, self.cases)
        return self._score_pile(len(self.cases), before, {})

    def _heights(self) -> list[Height]:
        assert self.candidate.editor_of is not None
        editors = [self.candidate.editor_of(case) for case in self.cases]
        before = self.scoring.before(self.lm, self.cases)
        found: list[Height] = []
        untouched: dict[Site, Tensor] = {}
        steps = list(enumerate(zip(self.cases, editors, strict=True)))
        with ExitStack() as pile, self._bar() as bar:
            if self.regime.kind == "batch":
                self.edits = [self._get_edit(case, editor, bar) for _, (case, editor) in steps]
            for number, (case, editor) in steps:
                if self.regime.kind == "sequential":
                    self.edits.append(self._get_edit(case, editor, bar))
                update = self._update(self.edits[number])
                if update is not None:
                    for site in update.deltas.keys() - untouched.keys():
                        untouched[site] = self.lm.snapshot(site)
                    pile.enter_context(editor.applied(update))
                if number + 1 in self.regime.sizes:
                    found.append(self._score_pile(number + 1, before, untouched))
                    if found[-1].collapsed and self.regime.stop:
                        break
        return found

    def _bar(self) -> tqdm[Any]:
        return tqdm(
            total=len(self.cases), desc=self.candidate.name, unit="edit", disable=None, leave=False
        )

    def _get_edit(self, case: Case, editor: Editor, bar: tqdm[Any]) -> Stored:
        """The edit of *case* on the present model, from the store or computed now."""
        sequential = self.regime.kind == "sequential" and self.edits
        key = key_of(
            edit=case.request.model_dump(),
            method=editor.name,
            base=self.lm.digest,
            upon=self.edits[-1].key if sequential else None,
            asking=asking_of(self.lm),
            **editor_facts(editor),
        )
        stored = self._get_result(key, case.id, lambda: self._compute_edit(key, case, editor))
        bar.update()
        return stored

    def _compute_edit(self, key: str, case: Case, editor: Editor) -> Result:
        if self.failed:
            return Result(failure=self.failed)
        try:
            found = compute_update(self.lm, editor, case.request)
        except ModelChangedError:
            raise
        except Exception as error:  # noqa: BLE001  (a plugin may raise anything)
            return Result(failure=failure_of(error))
        facts = {
            "method": editor.name,
            "version": editor.loaded.version,
            "request": case.request.model_dump(),
        }
        save_patch(self._patch(key), found.update, facts)
        norms = relative_norms(self.lm, found.update)
        known = {"bytes": patch_bytes(found.update), "norms": norms}
        return Result(facts=known, seconds=found.seconds, mebibytes=found.mebibytes)

    def _patch(self, key: str) -> Path:
        return self.folder / PATCHES / f"{key[:32]}.safetensors"

    def _update(self, edit: Stored) -> Update | None:
        """The update of a finished *edit*, as every process reads it; None if the edit failed."""
        if self.failed or read_outcome(edit, self.candidate.name).failure is not None:
            return None
        return load_patch(self._patch(edit.key))[0]

    def _get_result(self, key: str, case_id: str, work: Callable[[], Result]) -> Stored:
        """The result of a task: from the store, by doing it, or by waiting for another process."""
        while (found := self.store.get(key)) is None:
            if self.store.claim(key):
                store_result(self.store, key, self.candidate.name, case_id, work())
                self.mine.append(key)
            else:
                time.sleep(POLL_SECONDS)
        return found

    def _score_pile(
        self, size: int, before: Sequence[Tensor | None], untouched: dict[Site, Tensor]
    ) -> Height:
        """Score the first *size* cases on the present model, and the model itself."""
        scoring, heldout = replace(self.scoring, heldout=None), self.scoring.heldout
        assert heldout is not None
        state = {
            "base": self.lm.digest,
            "method": self.candidate.name,
            "edits": key_of(edits=[edit.key for edit in self.edits[:size]]),
            "protocol": protocol(self.scoring.groups),
            "asking": asking_of(self.lm),
            "resources": self.scoring.digest,
        }
        outcomes = []
        for number, case in enumerate(self.cases[:size]):
            key = key_of(**state, case=case.model_dump(mode="json"))
            work = partial(_score_case, scoring, self.lm, case, before[number])
            stored = self._get_result(key, case.id, work)
            outcomes.append(self._join_outcome(stored, number))

        def look_at_model() -> Result:
            found = heldout.measure(self.lm) | drift(self.lm, untouched)
            return Result(_finite(found))

        whole = self._get_result(key_of(**state, case=None), OF_MODEL, look_at_model)
        model = dict(read_outcome(whole, self.candidate.name).scores or {})
        limit = self.regime.collapse * (heldout.base["perplexity"] or math.inf)
        now = model["perplexity"]
        return Height(size, outcomes, model, now is None or now > limit)

    def _join_outcome(self, scores: Stored, number: int) -> Outcome:
        """The scores of a case on the pile, with the cost and failure of its own edit."""
        found = read_outcome(scores, self.candidate.name)
        if number >= len(self.edits):
            return found
        edit = read_outcome(self.edits[number], self.candidate.name)
        return replace(found, seconds=edit.seconds, failure=edit.failure, extras=edit.extras)


def _score_case(scoring: Scoring, lm: Lm, case: Case, before: Tensor | None) -> Result:
    result = scoring.score(lm, [case], [before])[0]
    return replace(result, scores=_finite(result.scores or {}))


def _finite(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace NaN and infinity by None: a destroyed model has no score."""
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in scores.items()
    }
