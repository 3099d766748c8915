"""The work of a comparison: edit and score each case. A failure is a result.

If a method only adds its deltas to weights of full precision, several edits are scored together,
beside the weights (`lmedit.replay.unmerged`). Else each edit is applied, scored and reverted.
Finished tasks are in the store and are not repeated. Several processes may share a run.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.candidates import BASE, Candidate
from lmedit.compare.result import Result
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import LmeditError, ModelChangedError, RequestError, UnsoundEditWarning
from lmedit.memory import peak_memory
from lmedit.metrics.harm import damage, unsound
from lmedit.metrics.weights import patch_bytes, relative_norms, spectral_growth, survival, worst
from lmedit.replay.unmerged import States, UnmergedEdits
from lmedit.storage.json_files import whole_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit.compare.case_scores import Scoring
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Update

POLL_SECONDS = 0.2
AT_ONCE = 8
"""How many edits are scored together, and computed together if the method can."""


@dataclass(frozen=True)
class Task:
    """One candidate on one case."""

    key: str
    case: Case
    candidate: Candidate


@dataclass(frozen=True)
class Computed:
    """A computed update, its (share of the) seconds, and its peak memory in MiB."""

    update: Update
    seconds: float
    mebibytes: float | None


@dataclass(frozen=True)
class Ended:
    """Another process ended while it did these tasks."""

    why: str
    """How it ended: the reason of the failure of the task that it had begun."""
    give_up: bool = False
    """Whether it ended too often: then every task that is left is a failure."""


Results = Callable[[Sequence[Task], Sequence[Task]], Mapping[str, Result]]
"""Called with a group of tasks and its claimed tasks; returns the results of these by key."""


@dataclass
class Worker:
    """One process of a run. It puts finished tasks into the store."""

    store: RunStore
    lm: Lm
    scoring: Scoring
    states: States
    mine: list[str] = field(default_factory=list)
    """The keys of the tasks that this process finished."""
    after: Ended | None = None
    """If a process ended while it did this work: tasks are done one by one."""

    def finish(self, tasks: Sequence[Task]) -> list[Stored]:
        """Finish *tasks*, wait for tasks of other processes, and return all results in order.

        If a candidate changes the model, all its cases fail: its results are dropped, and the model
        is loaded again. Raises `ModelChangedError` if the model cannot be loaded again.
        """
        name = tasks[0].candidate.name if tasks else BASE
        self.mine = []
        try:
            with keep_base(self.store, self.lm, name, self.mine):
                self._work(tasks, self._results)
        except ModelChangedError as error:
            load_again(self.lm, error)
            self.states = States(self.lm)  # the stored states may come from the changed model
            failed = Result(failure=error.what)
            self._work(tasks, lambda _, claimed: {task.key: failed for task in claimed})
        return [stored for task in tasks if (stored := self.store.get(task.key))]

    def _work(self, tasks: Sequence[Task], results: Results) -> None:
        # Every process and every start makes the same groups.
        waiting = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
        name = tasks[0].candidate.name if tasks else ""
        with tqdm(total=len(tasks), desc=name, unit="case", disable=None, leave=False) as bar:
            while waiting:
                left = []
                for group in waiting:
                    if self._finish_group(group, results):
                        bar.update(len(group))
                    else:
                        left.append(group)
                if len(left) == len(waiting):
                    time.sleep(POLL_SECONDS)
                waiting = left

    def _finish_group(self, group: Sequence[Task], results: Results) -> bool:
        """Do the free tasks of *group*; return whether all of its tasks are finished."""
        left = [task for task in group if self.store.get(task.key) is None]
        if self.after is not None:
            done = [self._finish_alone(task, group, results, self.after) for task in left]
            return all(done)
        claimed = [task for task in left if self.store.claim(task.key)]
        found = results(group, claimed) if claimed else {}
        for task in claimed:
            store_result(self.store, task.key, task.candidate.name, task.case.id, found[task.key])
            self.mine.append(task.key)
        return len(claimed) == len(left)

    def _finish_alone(
        self, task: Task, group: Sequence[Task], results: Results, after: Ended
    ) -> bool:
        """Do one task, unless a process ended during it: then it is a failure."""
        guilty = after.give_up or self.store.left_behind(task.key)
        if not self.store.claim(task.key):
            return False
        failed = Result(failure=after.why)
        found = failed if guilty else results(group, [task])[task.key]
        store_result(self.store, task.key, task.candidate.name, task.case.id, found)
        self.mine.append(task.key)
        return True

    def _results(self, group: Sequence[Task], claimed: Sequence[Task]) -> dict[str, Result]:
        """The result of each *claimed* task of *group*.

        An exception of a method is a failure of its case. Updates that are computed together are
        those of the whole group. So they do not depend on which tasks are finished.
        """
        candidate, lm = group[0].candidate, self.lm
        if candidate.editor_of is None:
            return self._score_unedited(claimed)
        known = self._compute_together(group)
        found: dict[str, Result] = {}
        for task in claimed:
            if task.key not in known:
                try:
                    editor = candidate.editor_of(task.case)
                    work = partial(editor.compute, task.case.request)
                    known[task.key] = compute_update(lm, work)
                except ModelChangedError:
                    raise
                except Exception as error:  # noqa: BLE001  (a plugin may raise anything)
                    found[task.key] = Result(failure=failure_of(error))
        scored = self._score_together([t for t in claimed if t.key in known], known)
        for task in claimed:
            if task.key in known:
                found[task.key] = self._result(task, known[task.key], scored.get(task.key))
        return found

    def _score_unedited(self, tasks: Sequence[Task]) -> dict[str, Result]:
        """The scores of *tasks* without an edit. A record that cannot be scored is a failure."""
        lm = self.lm
        try:
            before = self.scoring.before(lm, [task.case for task in tasks])
            asked = [task.candidate.asked(task.case) for task in tasks]
            results = self.scoring.score(lm, asked, before, edited=False)
        except Exception as error:  # noqa: BLE001  (one text may be too long, for example)
            if len(tasks) == 1:
                return {tasks[0].key: Result(failure=failure_of(error))}
            return {
                key: each for task in tasks for key, each in self._score_unedited([task]).items()
            }
        return {task.key: each for task, each in zip(tasks, results, strict=True)}

    def _compute_together(self, group: Sequence[Task]) -> dict[str, Computed]:
        """The updates of a group by key; empty if one of them fails: then each is tried alone."""
        editor = group[0].candidate.editor
        if editor is None or not editor.computes_many:
            return {}
        self.lm.state()  # as in `compute_update`
        try:
            with peak_memory(self.lm.device) as peak:
                started = time.perf_counter()
                with told_elsewhere():
                    updates = editor.compute_many([task.case.request for task in group])
                seconds = (time.perf_counter() - started) / len(group)
        except ModelChangedError:
            raise
        except Exception:  # noqa: BLE001  (a plugin may raise anything)
            return {}
        return {
            task.key: Computed(update, seconds, peak.mebibytes)
            for task, update in zip(group, updates, strict=True)
        }

    def _score_together(
        self, group: Sequence[Task], known: Mapping[str, Computed]
    ) -> dict[str, Result]:
        """Score the edits that can stay beside the weights, in shared forward passes.

        Empty if one of them fails: then each is tried alone.
        """
        lm = self.lm
        group = [t for t in group if _adds(t) and UnmergedEdits.fits(lm, known[t.key].update)]
        cases = [task.case for task in group]
        if not group:
            return {}
        try:
            edits = UnmergedEdits(lm, [known[task.key].update for task in group], self.states)
            scored = self.scoring.score(lm, cases, self.scoring.before(lm, cases), edits)
        except Exception:  # noqa: BLE001  (one text may be too long, for example)
            return {}
        return {task.key: look for task, look in zip(group, scored, strict=True)}

    def _result(self, task: Task, known: Computed, scored: Result | None) -> Result:
        """The result of a task. Without *scored*, apply the edit, score the model, and revert."""
        try:
            return edit_case(self.lm, task, self.scoring, known, scored)
        except ModelChangedError:
            raise
        except Exception as error:  # noqa: BLE001  (a plugin may raise anything)
            return Result(failure=failure_of(error))


def _adds(task: Task) -> bool:
    editor_of = task.candidate.editor_of
    return editor_of is not None and editor_of(task.case).adds


def group_size(editor: Editor) -> int:
    """How many cases' updates are computed together."""
    return AT_ONCE if editor.computes_many else 1


@contextmanager
def keep_base(store: RunStore, lm: Lm, method: str, mine: list[str]) -> Iterator[None]:
    """After the block, check by hash that *lm* is the base model.

    If not, drop the results *mine* and raise `ModelChangedError`. The check reads all weights, also
    if the block is interrupted.
    """
    known: ModelChangedError | None = None
    try:
        yield
    except ModelChangedError as error:
        known = error
    finally:
        changed = known is not None or lm.weights_digest() != lm.digest
        if changed:
            store.drop(mine)
            mine.clear()
    if changed:
        raise known or ModelChangedError(
            f"method {method!r} changed the model outside apply and revert; its results are dropped"
        )


def load_again(lm: Lm, error: ModelChangedError) -> None:
    """Load *lm* again; raise *error* if that is not possible."""
    if not lm.renew():
        raise error


def store_result(store: RunStore, key: str, method: str, case_id: str, result: Result) -> None:
    """Put the result of a finished task into the store."""
    text = whole_text(json.dumps(result.payload(), sort_keys=True, ensure_ascii=False))
    case_id = whole_text(case_id)
    store.put(Stored(key, method, case_id, text, result.seconds, result.mebibytes))


LONGEST_REASON = 2000
"""The longest reason of a failure, in characters."""


def failure_of(error: Exception) -> str:
    """The reason why an edit failed, in one line."""
    told = str(error) if isinstance(error, LmeditError) else repr(error)
    return whole_text(" ".join(told.split()))[:LONGEST_REASON]


@contextmanager
def told_elsewhere() -> Iterator[None]:
    """No warnings of unsound edits in the block: the results count them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsoundEditWarning)
        yield


def compute_update(lm: Lm, work: Callable[[], Update]) -> Computed:
    """The update that *work* computes, with its seconds and its memory."""
    lm.state()  # read all weights before the clock starts
    with peak_memory(lm.device) as peak:
        started = time.perf_counter()
        with told_elsewhere():
            update = work()
        seconds = time.perf_counter() - started
    return Computed(update, seconds, peak.mebibytes)


def facts_of(lm: Lm, update: Update) -> dict[str, Any]:
    """The bytes of *update*, its norms, and why it is unsound, if its method says so."""
    norms = relative_norms(lm, update)
    return {"bytes": patch_bytes(update), "norms": norms, "unsound": unsound(update)}


def edit_case(
    lm: Lm, task: Task, scoring: Scoring, known: Computed, scored: Result | None
) -> Result:
    """Score a computed edit. Seconds and memory are those of computing the update."""
    update = known.update
    facts = facts_of(lm, update)
    of_weights = {"relative_norm": worst(facts["norms"].values())}
    of_weights["survival"] = min(survival(lm, update).values(), default=None)
    if "health" in scoring.groups:
        of_weights["spectral_growth"] = worst(spectral_growth(lm, update).values())
    if scored is None:
        assert task.candidate.editor_of is not None
        before = scoring.before(lm, [task.case])
        with task.candidate.editor_of(task.case).applied(update):
            (scored,) = scoring.score(lm, [task.case], before)
    scores = {**(scored.scores or {}), **of_weights}
    if any(score is not None and not math.isfinite(score) for score in scores.values()):
        raise RequestError("the edited model returns NaN or infinity; the update is too large")
    if facts["unsound"] is None and scoring.heldout is not None:
        facts["unsound"] = damage(scoring.heldout.base, scores, "held-out text")
    return replace(
        scored,
        scores=scores,
        facts=facts,
        seconds=known.seconds,
        mebibytes=known.mebibytes,
    )
