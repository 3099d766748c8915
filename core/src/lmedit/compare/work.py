"""The work of a comparison: edit, score, revert each case; a failure is a result.

What is finished is in the store and never done again; several processes may work on one run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.entrants import BASE, Entrant
from lmedit.compare.memory import peak_memory
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import LmeditError, ModelChangedError, RequestError
from lmedit.metrics.weights import patch_bytes, relative_norms, spectral_growth, survival, worst

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit.compare.case_scores import Scoring
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Request, Update

POLL_SECONDS = 0.2
AT_ONCE = 8
"""Cases whose updates a method works out together, where it can."""


@dataclass(frozen=True)
class Task:
    """One entrant on one case."""

    key: str
    case: Case
    entrant: Entrant


@dataclass(frozen=True)
class Edited:
    """What an edited case gave: the payload to keep, and what differs from run to run."""

    payload: dict[str, Any]
    seconds: float | None = None
    mebibytes: float | None = None


@dataclass(frozen=True)
class Computed:
    """An update, the seconds that computing it took (its share, where several were computed
    together), and the peak in MiB.
    """

    update: Update
    seconds: float
    mebibytes: float | None


Results = Callable[[Sequence[Task], Sequence[Task]], Iterable[Edited]]
"""Of a group and those of its tasks that were claimed: the results of these, in order."""


def worked(store: RunStore, lm: Lm, tasks: Sequence[Task], scoring: Scoring) -> list[Stored]:
    """Finish *tasks*, those that nobody else is at; wait for the others; the results in order.

    An entrant that changes the model has failed in all its cases: what it did here is dropped, and
    the model is loaded again. Raises `ModelChangedError` where that cannot be.
    """
    name = tasks[0].entrant.name if tasks else BASE
    mine: list[str] = []
    try:
        with base_kept(store, lm, name, mine):
            _work(store, tasks, partial(_results, lm, scoring), mine)
    except ModelChangedError as error:
        renewed(lm, error)
        failed = Edited({"failure": error.what})
        _work(store, tasks, lambda _, claimed: [failed] * len(claimed), mine)
    return [stored for task in tasks if (stored := store.get(task.key))]


@contextmanager
def base_kept(store: RunStore, lm: Lm, method: str, mine: list[str]) -> Iterator[None]:
    """Drop the results *mine*, and raise `ModelChangedError`, where *lm* is not the base after it.

    Its weights are all read for that, also where the block is interrupted.
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


def renewed(lm: Lm, error: ModelChangedError) -> None:
    """Load *lm* again, or else raise *error*."""
    if not lm.renew():
        raise error


def _work(
    store: RunStore, tasks: Sequence[Task], results: Results, mine: list[str]
) -> None:  # fmt: skip
    """Do what is left of *tasks*; the keys of those done here are added to *mine*."""
    waiting = list(_groups(tasks))
    name = tasks[0].entrant.name if tasks else ""
    with tqdm(total=len(tasks), desc=name, unit="case", disable=None, leave=False) as bar:
        while waiting:
            left = []
            for group in waiting:
                if _finished(store, group, results, mine):
                    bar.update(len(group))
                else:
                    left.append(group)
            if len(left) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = left


def at_once(editor: Editor) -> int:
    """How many cases' updates are worked out together."""
    return AT_ONCE if editor.computes_many else 1


def _groups(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    """Tasks whose updates are worked out together: the same in every process, at every start."""
    editor = tasks[0].entrant.editor if tasks else None
    size = at_once(editor) if editor is not None else 1
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def _finished(
    store: RunStore, group: Sequence[Task], results: Results, mine: list[str]
) -> bool:  # fmt: skip
    """Whether all tasks of *group* are finished, if need be by doing now what nobody is at."""
    left = [task for task in group if store.get(task.key) is None]
    claimed = [task for task in left if store.claim(task.key)]
    for task, edited in zip(claimed, results(group, claimed), strict=True):
        keep(store, task.key, task.entrant.name, task.case.id, edited)
        mine.append(task.key)
    return len(claimed) == len(left)


def _results(
    lm: Lm, scoring: Scoring, group: Sequence[Task], claimed: Sequence[Task]
) -> Iterator[Edited]:
    """Do those tasks of *group* that were *claimed*, one after the other."""
    together = _together(lm, group) if claimed and len(group) > 1 else {}
    for task in claimed:
        yield _result(lm, scoring, task, together.get(task.key))


def _together(lm: Lm, group: Sequence[Task]) -> dict[str, Computed]:
    """The updates of a group by key; none where one of them fails, so that each is tried alone."""
    editor = group[0].entrant.editor
    assert editor is not None
    lm.state()  # as in `computed`
    try:
        with peak_memory(lm.device) as peak:
            started = time.perf_counter()
            updates = editor.compute_many([task.case.request for task in group])
            seconds = (time.perf_counter() - started) / len(group)
    except ModelChangedError:
        raise
    except Exception:  # noqa: BLE001  (a stranger's method may raise anything)
        return {}
    return {
        task.key: Computed(update, seconds, peak.mebibytes)
        for task, update in zip(group, updates, strict=True)
    }


def keep(store: RunStore, key: str, method: str, case_id: str, edited: Edited) -> None:
    """Put a finished task into the store."""
    text = json.dumps(edited.payload, sort_keys=True, ensure_ascii=False)
    store.put(Stored(key, method, case_id, text, edited.seconds, edited.mebibytes))


def _result(lm: Lm, scoring: Scoring, task: Task, known: Computed | None) -> Edited:
    """Do *task*, its update *known* or not; what a method raises is a failure of this case."""
    entrant = task.entrant
    if entrant.editor_of is None:
        before = scoring.before(lm, task.case)
        looked = scoring.look(lm, entrant.asked(task.case), before, edited=False)
        return Edited(looked.payload())
    try:
        return edit_case(lm, task.case, entrant.editor_of(task.case), scoring, known)
    except ModelChangedError:
        raise
    except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
        return Edited({"failure": failure_of(error)})


def failure_of(error: Exception) -> str:
    """Why an edit failed, in a line."""
    return str(error) if isinstance(error, LmeditError) else repr(error)


def computed(lm: Lm, editor: Editor, request: Request) -> Computed:
    """The update of *request* alone."""
    lm.state()  # so that reading all weights for the first time is not counted
    with peak_memory(lm.device) as peak:
        started = time.perf_counter()
        update = editor.compute(request)
        seconds = time.perf_counter() - started
    return Computed(update, seconds, peak.mebibytes)


def edit_case(
    lm: Lm, case: Case, editor: Editor, scoring: Scoring, known: Computed | None = None
) -> Edited:
    """Edit, score, revert; seconds and memory are those of computing the update, not of scoring."""
    known = known or computed(lm, editor, case.request)
    update = known.update
    before = scoring.before(lm, case)
    norms = relative_norms(lm, update)
    of_weights = {"relative_norm": worst(norms.values())}
    of_weights["survival"] = min(survival(lm, update).values(), default=None)
    if "health" in scoring.groups:
        of_weights["spectral_growth"] = worst(spectral_growth(lm, update).values())
    with editor.applied(update):
        looked = scoring.look(lm, case, before)
    payload = looked.payload()
    payload["scores"] |= of_weights
    if any(score is not None and not math.isfinite(score) for score in payload["scores"].values()):
        raise RequestError("the edited model gives no numbers; the update is too large")
    return Edited(
        payload | {"bytes": patch_bytes(update), "norms": norms}, known.seconds, known.mebibytes
    )
