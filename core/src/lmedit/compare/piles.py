"""One candidate's edits in one model: computed in parts, applied one on the other, and scored."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.comparison import (
    Outcome,
    abilities_of,
    editor_facts,
    model_facts,
    protocol_facts,
    read_outcome,
)
from lmedit.compare.heights import Height, Part
from lmedit.compare.one_edit import (
    compute_case,
    compute_together,
    compute_update,
    facts_of,
    failure_of,
)
from lmedit.compare.result import Result
from lmedit.compare.scoring import only_finite, score_case, score_group, scores_before
from lmedit.compare.worker import (
    AT_ONCE,
    POLL_SECONDS,
    Ended,
    keep_base,
    load_again,
    store_result,
)
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import ModelChangedError
from lmedit.metrics.weights import drift
from lmedit.storage.cache import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit.compare.candidates import Candidate
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.heights import Computed, Regime
    from lmedit.compare.one_edit import Computed as ComputedEdit
    from lmedit.compare.scoring import Before
    from lmedit.compare.store import RunStore, Stored
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Carried, Case, Site, Update

PATCHES = "patches"
OF_MODEL = "the model"
"""The case id of scores that are measured once for the whole pile."""


@dataclass
class Pile:
    """One candidate's edits in one model, in the order of the cases."""

    store: RunStore
    lm: Lm
    candidate: Candidate
    cases: Sequence[Case]
    scoring: Scoring
    regime: Regime
    folder: Path
    parts: list[Part] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    mine: list[str] = field(default_factory=list)
    failed: str | None = None
    """The reason why none of its edits counts: it changed the model."""
    after: Ended | None = None
    """If a process ended while it did this work: the task that it had begun is a failure."""

    def heights(self) -> list[Height]:
        """Score the pile at each size. Afterwards the model is the base again, checked by hash."""
        try:
            with keep_base(self.store, self.lm, self.candidate.name, self.mine):
                return self._heights() if self.candidate.editor_of else self._base_heights()
        except ModelChangedError as error:
            load_again(self.lm, error)
            self.failed = error.what
            self.parts, self.carried = [], []
            return self._heights()

    @property
    def _joins(self) -> bool:
        return self.candidate.editor is not None and self.candidate.editor.joins

    @property
    def _computed(self) -> Computed:
        if self._joins and (self.regime.kind == "batch" or self.regime.batch > 1):
            return "joint"
        return "sum" if self.regime.kind == "batch" else "one by one"

    def _base_heights(self) -> list[Height]:
        """The base; or, for a baseline that changes the prompts, a height for each size."""
        before = scores_before(self.scoring, self.lm, self.cases)
        asks = self.candidate.asks
        sizes = self.regime.sizes if asks else (len(self.cases),)
        return [self._score_pile(size, before, {}) for size in sizes]

    def _heights(self) -> list[Height]:
        assert self.candidate.editor_of is not None
        editors = [self.candidate.editor_of(case) for case in self.cases]
        before = scores_before(self.scoring, self.lm, self.cases)
        count, name = len(self.cases), self.candidate.name
        with tqdm(total=count, desc=name, unit="edit", disable=None, leave=False) as bar:
            if self.regime.kind != "batch":
                return self._pile_up(editors, before, self._spans(), bar)
            if not self._joins:
                self._compute_in_groups(bar)
                self.parts = [self._get_part(n, n + 1, editors, bar) for n in range(len(editors))]
                return self._pile_up(editors, before, self._spans(), bar)
            found: list[Height] = []
            for size in self.regime.sizes:
                self.parts = []
                found += self._pile_up(editors, before, [(0, size)], bar)
                if found[-1].collapsed and self.regime.stop:
                    break
            return found

    def _spans(self) -> list[tuple[int, int]]:
        """The cases of each edit, in order."""
        count = len(self.cases)
        step = self.regime.batch if self._joins and self.regime.kind == "batched" else 1
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def _pile_up(
        self,
        editors: Sequence[Editor],
        before: Sequence[Before],
        spans: Sequence[tuple[int, int]],
        bar: tqdm[Any],
    ) -> list[Height]:
        """Apply the edits of *spans* one on the other, score at each size, and take them out."""
        found: list[Height] = []
        untouched: dict[Site, Tensor] = {}
        fresh: list[Outcome] | None = None if self.regime.kind == "batch" else []
        given = len(self.parts)
        with ExitStack() as pile:
            for number, (start, end) in enumerate(spans):
                if number >= given:
                    self.parts.append(self._get_part(start, end, editors, bar))
                update = self._update(self.parts[number])
                if update is not None:
                    for site in update.deltas.keys() - untouched.keys():
                        untouched[site] = self.lm.snapshot(site)
                    pile.enter_context(editors[start].applied(update))
                    if update.carry:
                        self.carried.append(editors[start].carry_of(update))
                if fresh is not None:
                    fresh += self._outcomes(start, end, before)
                if end in self.regime.sizes:
                    height = self._score_pile(end, before, untouched)
                    right_after = None if fresh is None else list(fresh)
                    found.append(replace(height, right_after=right_after))
                    if found[-1].collapsed and self.regime.stop:
                        break
        self.carried = []
        return found

    def _get_part(self, start: int, end: int, editors: Sequence[Editor], bar: tqdm[Any]) -> Part:
        """The edit of some cases on the present model, from the store or computed now."""
        editor, cases = editors[start], self.cases[start:end]
        key = self._key(cases, editor)
        name = cases[0].id if len(cases) == 1 else f"{cases[0].id} to {cases[-1].id}"
        stored = self._get_result(key, name, lambda: self._compute(key, cases, editor))
        bar.update(len(cases))
        return Part(start, end, stored)

    def _key(self, cases: Sequence[Case], editor: Editor) -> str:
        """The key of the edit of *cases* on the present model."""
        upon = self.parts[-1].stored.key if self.parts else None
        if self.regime.kind == "batch":
            upon = "batch"  # its last bits can differ from those of an edit that is computed alone
        requests = [request.model_dump() for case in cases for request in case.requests]
        return key_of(
            edit=requests[0] if not self._together(editor) else requests,
            method=editor.name,
            upon=upon,
            **model_facts(self.lm),
            **editor_facts(editor),
        )

    def _compute_in_groups(self, bar: tqdm[Any]) -> None:
        """Compute edits of single cases that can share their passes, each on the base."""
        editor = self.candidate.editor
        several = any(case.further for case in self.cases)
        if self.failed or self.after or several or editor is None or not editor.computes_many:
            return
        keys = [self._key([case], editor) for case in self.cases]
        for group, mine in self._claim_groups(keys):
            cases = self.cases[group]
            found = compute_together(self.lm, editor, cases)
            for key, n in mine.items():
                known = found[n] if found else None
                self._store(key, cases[n].id, self._compute(key, [cases[n]], editor, known))
            bar.update(len(cases))
        bar.reset()  # `_get_part` counts them again

    def _claim_groups(self, keys: Sequence[str]) -> Iterator[tuple[slice, dict[str, int]]]:
        """The groups of *keys* with free tasks; and those by key, with their places in the group.

        They are claimed now. A group is done whole, so a result does not depend on which others are
        finished. What another process has claimed is left to it.
        """
        for start in range(0, len(keys), AT_ONCE):
            group = slice(start, start + AT_ONCE)
            claimed = self.store.claim_all(keys[group])
            if claimed:
                yield group, {key: n for n, key in enumerate(keys[group]) if key in claimed}

    def _together(self, editor: Editor) -> bool:
        """Whether the facts of a part are computed by the joint hook."""
        return self._joins and editor.joins

    def _compute(
        self, key: str, cases: Sequence[Case], editor: Editor, known: ComputedEdit | None = None
    ) -> Result:
        """The result of the edit of *cases*; *known* is the edit if it was computed already."""
        if self.failed:
            return Result(failure=self.failed)
        requests = [request for case in cases for request in case.requests]
        try:
            if self._together(editor):
                work = partial(editor.compute_joint, requests, tuple(self.carried))
            else:
                work = partial(compute_case, editor, cases[0])
            found = known or compute_update(self.lm, work)
        except ModelChangedError:
            raise
        except Exception as error:  # noqa: BLE001  (a plugin may raise anything)
            return Result(failure=failure_of(error))
        dumped = [request.model_dump() for request in requests]
        facts = {
            "method": editor.name,
            "version": editor.loaded.version,
            **({"request": dumped[0]} if len(dumped) == 1 else {"requests": dumped}),
        }
        save_patch(self._patch(key), found.update, facts)
        about = facts_of(self.lm, found.update)
        return Result(facts=about, seconds=found.seconds, mebibytes=found.mebibytes)

    def _patch(self, key: str) -> Path:
        return self.folder / PATCHES / f"{key[:32]}.safetensors"

    def _update(self, part: Part) -> Update | None:
        """The update of a finished edit, as every process reads it; None if the edit failed."""
        given_up = self.after is not None and self.after.give_up  # nothing of it runs any more
        failure = read_outcome(part.stored, self.candidate.name).failure
        if self.failed or given_up or failure is not None:
            return None
        return load_patch(self._patch(part.stored.key))[0]

    def _get_result(self, key: str, case_id: str, work: Callable[[], Result]) -> Stored:
        """The result of a task: from the store, by doing it, or by waiting for another process."""
        while (found := self.store.get(key)) is None:
            after = self.after
            fails = after is not None and (after.give_up or self.store.left_behind(key))
            if self.store.claim(key):
                result = Result(failure=after.why) if after and fails else work()
                self._store(key, case_id, result)
            else:
                time.sleep(POLL_SECONDS)
        return found

    def _store(self, key: str, case_id: str, result: Result) -> None:
        store_result(self.store, key, self.candidate.name, case_id, result)
        self.mine.append(key)

    def _state(self, size: int) -> dict[str, Any]:
        """The values that determine the scores on a pile of *size* edits."""
        state = {
            "method": self.candidate.name,
            "edits": key_of(edits=[p.stored.key for p in self.parts if p.start < size]),
            **protocol_facts(self.lm, self.scoring),
        }
        return state | ({"among": size} if self.candidate.asks else {})

    def _outcomes(self, start: int, size: int, before: Sequence[Before]) -> list[Outcome]:
        """The scores of the cases *start* to *size*, on the present pile of *size* edits."""
        scoring = replace(self.scoring, heldout=None, abilities=None)
        cases, before = self.cases[start:size], before[start:size]
        if self.candidate.asks:
            cases = [*map(self.candidate.asks(self.cases[:size]), cases)]
        state = self._state(size)
        keys = [key_of(**state, case=case.model_dump(mode="json")) for case in cases]
        for group, mine in self._claim_groups([] if self.after else keys):
            results = score_group(scoring, self.lm, cases[group], before[group])
            for key, n in mine.items():
                self._store(key, cases[group][n].id, results[n])
        found = []
        for n, (key, case) in enumerate(zip(keys, cases, strict=True)):
            work = partial(score_case, scoring, self.lm, case, before[n])
            found.append(self._join_outcome(self._get_result(key, case.id, work), start + n))
        return found

    def _score_pile(
        self, size: int, before: Sequence[Before], untouched: dict[Site, Tensor]
    ) -> Height:
        """Score the first *size* cases on the present model, and the model itself."""
        heldout = self.scoring.heldout
        assert heldout is not None
        outcomes = self._outcomes(0, size, before)

        def look_at_model() -> Result:
            found = heldout.measure(self.lm) | drift(self.lm, untouched)
            tasks = of.measure() if of is not None and self.candidate.editor_of else {}
            return Result(only_finite(found), abilities=tasks)

        of = self.scoring.abilities
        whole = self._get_result(key_of(**self._state(size), case=None), OF_MODEL, look_at_model)
        model = {**dict.fromkeys(heldout.base), **drift(self.lm, {})}
        seen = read_outcome(whole, self.candidate.name)
        model |= seen.scores or {}
        limit = self.regime.collapse * (heldout.base["perplexity"] or math.inf)
        now = model["perplexity"]
        told = abilities_of(self.scoring, self.candidate, [seen], self.scoring.seed)
        computed: Computed = self._computed if self.candidate.editor_of else "prompt"
        return Height(size, outcomes, model, now is None or now > limit, computed, told)

    def _join_outcome(self, scores: Stored, number: int) -> Outcome:
        """The scores of a case, with the failure of its edit and its equal share of the cost."""
        found = read_outcome(scores, self.candidate.name)
        part = next((each for each in self.parts if each.start <= number < each.end), None)
        if part is None:
            return found
        edit, count = read_outcome(part.stored, self.candidate.name), part.end - part.start
        seconds = None if edit.seconds is None else edit.seconds / count
        size = edit.extras.get("patch_bytes")
        extras = {**edit.extras, "patch_bytes": None if size is None else size / count}
        failure = edit.failure or found.failure
        found = replace(found, seconds=seconds, failure=failure, extras=extras)
        return replace(found, unsound=edit.unsound)
