"""The work of a comparison: edit and score each case. A failure is a result.

If a method only adds its deltas to weights of full precision, several edits are scored together,
beside the weights (`lmedit.replay.unmerged`). Else each edit is applied, scored and reverted.
A worker returns results; the driver stores them (`lmedit.compare.driver`).
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from lmedit.compare.one_edit import (
    Computed,
    Task,
    compute_case,
    compute_together,
    compute_update,
    edit_case,
    failure_of,
)
from lmedit.compare.result import Result
from lmedit.errors import (
    ModelChangedError,
    RunError,
)
from lmedit.executors import Finished, Reply
from lmedit.replay.unmerged import States, UnmergedEdits
from lmedit.storage.json_files import whole_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.store import RunStore
    from lmedit.executors import Group
    from lmedit.models import Lm
    from lmedit.pipeline import Editor

POLL_SECONDS = 0.2
AT_ONCE = 8
"""How many edits are scored together, and computed together if the method can."""
CHECK_SHARE = 0.05
"""The share of its time that a worker spends on checks between two groups of one method."""


@dataclass(frozen=True)
class Ended:
    """Another process ended while it did these tasks."""

    why: str
    """How it ended: the reason of the failure of the task that it had begun."""
    give_up: bool = False
    """Whether it ended too often: then every task that is left is a failure."""


@dataclass
class Worker:
    """The work of a comparison in one process, with one model. It writes no store."""

    lm: Lm
    scoring: Scoring
    find: Callable[[str], Sequence[Task]] | None = None
    """Makes the tasks that `Group.about` names; None: `tasks` holds all."""
    often: bool = False
    """Whether the weights are checked also between two groups of one method, if that costs at most
    `CHECK_SHARE` of the time. Else a change is found when the method is done."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """Known tasks by key."""
    states: States = field(init=False)
    _changed: dict[str, str] = field(default_factory=dict)
    _unchecked: str = ""
    """The method that ran since the last check; empty if none did."""
    _broken: str = ""
    """Why the model cannot be loaded again; empty if it can."""
    _seconds: float = 0.0
    """The time of the groups since the last check."""
    _check_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Store no state of the model yet."""
        self.states = States(self.lm)

    def do(self, group: Group) -> Reply:
        """The results of the wanted tasks of *group*.

        If its method changes the model, there is no result, and the model is loaded again.
        """
        if self._unchecked != group.method:
            self._check()
        if self._broken:
            return self._say(group)
        self._unchecked = group.method
        started = time.perf_counter()
        tasks = [self._task(key, group.about) for key in group.keys]
        wanted = [task for task in tasks if task.key in group.wanted]
        finished: tuple[Finished, ...] = ()
        try:
            found = self._results(tasks, wanted)
            finished = tuple(finish_task(task, found[task.key]) for task in wanted)
        except ModelChangedError as error:
            self._renew(group.method, error.what)
        self._seconds += time.perf_counter() - started
        if self.often and self._seconds * CHECK_SHARE >= self._check_seconds:
            self._check()
        return self._say(group, finished)

    def leave(self) -> Reply:
        """The methods that changed the model since the last reply. It reads all weights."""
        self._check()
        return self._say(None)

    def _say(self, group: Group | None, finished: tuple[Finished, ...] = ()) -> Reply:
        changed, self._changed = self._changed, {}
        if group is None or group.method in changed:
            finished = ()
        error = ("ModelChangedError", self._broken) if self._broken else None
        return Reply(group, finished, changed=changed, error=error)

    def _check(self) -> None:
        """Check by hash that the model is the base; if not, load it again."""
        method, self._unchecked = self._unchecked, ""
        if not method or self._broken:
            return
        started = time.perf_counter()
        if self.lm.weights_digest() != self.lm.digest:
            self._renew(method, changed_outside(method).what)
        self._check_seconds, self._seconds = time.perf_counter() - started, 0.0

    def _renew(self, method: str, what: str) -> None:
        self._changed[method] = what
        self._unchecked = ""
        if self.lm.renew():
            self.states = States(self.lm)  # the stored states may come from the changed model
        else:
            self._broken = str(ModelChangedError(what))

    def _task(self, key: str, about: str) -> Task:
        if key not in self.tasks and self.find is not None:
            self.tasks |= {task.key: task for task in self.find(about)}
        if key not in self.tasks:
            raise RunError(
                f"a worker has other tasks than the driver ({about}): its model, cases, options or "
                "lmedit differ; give each machine the same files and versions, and --compute "
                "float32 or bfloat16 in place of auto"
            )
        return self.tasks[key]

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
                    work = partial(compute_case, editor, task.case)
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
        several = any(task.case.further for task in group)
        if editor is None or not editor.computes_many or several:
            return {}
        found = compute_together(self.lm, editor, [task.case for task in group])
        return {task.key: each for task, each in zip(group, found, strict=False)}

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


def task_groups(tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The groups of *tasks*: up to `AT_ONCE` of one candidate. Every start makes the same."""
    found: list[Sequence[Task]] = []
    for _, some in groupby(tasks, key=lambda task: task.candidate.name):
        mine = list(some)
        found += [mine[start : start + AT_ONCE] for start in range(0, len(mine), AT_ONCE)]
    return found


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
        raise known or changed_outside(method)


def changed_outside(method: str) -> ModelChangedError:
    """The error that the hash of the weights differs after *method*."""
    return ModelChangedError(
        f"method {method!r} changed the model outside apply and revert; its results are dropped"
    )


def load_again(lm: Lm, error: ModelChangedError) -> None:
    """Load *lm* again; raise *error* if that is not possible."""
    if not lm.renew():
        raise error


def store_result(store: RunStore, key: str, method: str, case_id: str, result: Result) -> None:
    """Put the result of a finished task into the store."""
    store.put(as_finished(key, method, case_id, result))


def finish_task(task: Task, result: Result) -> Finished:
    """*task* with its *result*, as a worker hands it back."""
    return as_finished(task.key, task.candidate.name, task.case.id, result)


def as_finished(key: str, method: str, case_id: str, result: Result) -> Finished:
    """A result in the form in which the store keeps it."""
    text = whole_text(json.dumps(result.payload(), sort_keys=True, ensure_ascii=False))
    case_id = whole_text(case_id)
    return Finished(key, method, case_id, text, result.seconds, result.mebibytes)
