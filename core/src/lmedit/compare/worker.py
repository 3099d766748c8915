"""The work of a comparison: edit and score each case; a failure is a result.

Edits stay beside the weights and are scored together (`lmedit.replay.unmerged`) where a method adds
its deltas and the weights are of full precision; else each is applied, scored and reverted. What is
finished is in the store and never done again; several processes may work on one run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.candidates import BASE, Entrant
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import LmeditError, ModelChangedError, RequestError
from lmedit.memory import peak_memory
from lmedit.metrics.weights import patch_bytes, relative_norms, spectral_growth, survival, worst
from lmedit.replay.unmerged import Beside, States

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit.compare.case_scores import Looked, Scoring
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Request, Update

POLL_SECONDS = 0.2
AT_ONCE = 8
"""Cases whose edits are scored together, and worked out together where a method can."""


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


Results = Callable[[Sequence[Task], Sequence[Task]], Mapping[str, Edited]]
"""Of a group and those of its tasks that were claimed: the results of these, by key."""


@dataclass
class Worker:
    """One process at a run: what it finishes goes into the store."""

    store: RunStore
    lm: Lm
    scoring: Scoring
    states: States
    mine: list[str] = field(default_factory=list)
    """The keys of the tasks finished here."""

    def finished(self, tasks: Sequence[Task]) -> list[Stored]:
        """Finish *tasks*, those that nobody else is at; wait for the others; the results in order.

        An entrant that changes the model has failed in all its cases: what it did here is dropped,
        and the model is loaded again. Raises `ModelChangedError` where that cannot be.
        """
        name = tasks[0].entrant.name if tasks else BASE
        self.mine = []
        try:
            with base_kept(self.store, self.lm, name, self.mine):
                self._work(tasks, self._results)
        except ModelChangedError as error:
            renewed(self.lm, error)
            self.states = States(self.lm)  # those that are kept may be of the changed model
            failed = Edited({"failure": error.what})
            self._work(tasks, lambda _, claimed: {task.key: failed for task in claimed})
        return [stored for task in tasks if (stored := self.store.get(task.key))]

    def _work(self, tasks: Sequence[Task], results: Results) -> None:
        # The same groups in every process, at every start.
        waiting = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
        name = tasks[0].entrant.name if tasks else ""
        with tqdm(total=len(tasks), desc=name, unit="case", disable=None, leave=False) as bar:
            while waiting:
                left = []
                for group in waiting:
                    if self._finished(group, results):
                        bar.update(len(group))
                    else:
                        left.append(group)
                if len(left) == len(waiting):
                    time.sleep(POLL_SECONDS)
                waiting = left

    def _finished(self, group: Sequence[Task], results: Results) -> bool:
        """Whether all tasks of *group* are finished, if need be by doing now what nobody is at."""
        left = [task for task in group if self.store.get(task.key) is None]
        claimed = [task for task in left if self.store.claim(task.key)]
        found = results(group, claimed) if claimed else {}
        for task in claimed:
            keep(self.store, task.key, task.entrant.name, task.case.id, found[task.key])
            self.mine.append(task.key)
        return len(claimed) == len(left)

    def _results(self, group: Sequence[Task], claimed: Sequence[Task]) -> dict[str, Edited]:
        """What each of the *claimed* tasks of *group* gives.

        What a method raises is a failure of its case. Updates that are worked out together are
        those of the whole group, so they do not depend on what is finished.
        """
        entrant, lm = group[0].entrant, self.lm
        if entrant.editor_of is None:
            before = self.scoring.before(lm, [task.case for task in claimed])
            asked = [entrant.asked(task.case) for task in claimed]
            looked = self.scoring.look(lm, asked, before, edited=False)
            payloads = [Edited(look.payload()) for look in looked]
            return {task.key: each for task, each in zip(claimed, payloads, strict=True)}
        known = self._computed_together(group)
        found: dict[str, Edited] = {}
        for task in claimed:
            if task.key not in known:
                try:
                    editor = entrant.editor_of(task.case)
                    known[task.key] = computed(lm, editor, task.case.request)
                except ModelChangedError:
                    raise
                except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
                    found[task.key] = Edited({"failure": failure_of(error)})
        looked_at = self._looked_together([t for t in claimed if t.key in known], known)
        for task in claimed:
            if task.key in known:
                found[task.key] = self._edited(task, known[task.key], looked_at.get(task.key))
        return found

    def _computed_together(self, group: Sequence[Task]) -> dict[str, Computed]:
        """The updates of a group by key; none where one of them fails: each is tried alone."""
        editor = group[0].entrant.editor
        if editor is None or not editor.computes_many:
            return {}
        self.lm.state()  # as in `computed`
        try:
            with peak_memory(self.lm.device) as peak:
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

    def _looked_together(
        self, group: Sequence[Task], known: Mapping[str, Computed]
    ) -> dict[str, Looked]:
        """What is measured of the edits that can stay beside the weights, in shared passes.

        None where one of them fails: each is tried alone.
        """
        lm = self.lm
        group = [t for t in group if _adds(t) and Beside.fits(lm, known[t.key].update)]
        cases = [task.case for task in group]
        if not group:
            return {}
        try:
            edits = Beside(lm, [known[task.key].update for task in group], self.states)
            looked = self.scoring.look(lm, cases, self.scoring.before(lm, cases), edits)
        except Exception:  # noqa: BLE001  (as one text may be too long)
            return {}
        return {task.key: look for task, look in zip(group, looked, strict=True)}

    def _edited(self, task: Task, known: Computed, looked: Looked | None) -> Edited:
        """A finished task; without *looked* the edit is made, looked at and taken back."""
        try:
            return edit_case(self.lm, task, self.scoring, known, looked)
        except ModelChangedError:
            raise
        except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
            return Edited({"failure": failure_of(error)})


def _adds(task: Task) -> bool:
    editor_of = task.entrant.editor_of
    return editor_of is not None and editor_of(task.case).adds


def at_once(editor: Editor) -> int:
    """How many cases' updates are worked out together."""
    return AT_ONCE if editor.computes_many else 1


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


def keep(store: RunStore, key: str, method: str, case_id: str, edited: Edited) -> None:
    """Put a finished task into the store."""
    text = json.dumps(edited.payload, sort_keys=True, ensure_ascii=False)
    store.put(Stored(key, method, case_id, text, edited.seconds, edited.mebibytes))


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
    lm: Lm, task: Task, scoring: Scoring, known: Computed, looked: Looked | None
) -> Edited:
    """What a computed edit gives; seconds and memory are those of computing the update."""
    update = known.update
    norms = relative_norms(lm, update)
    of_weights = {"relative_norm": worst(norms.values())}
    of_weights["survival"] = min(survival(lm, update).values(), default=None)
    if "health" in scoring.groups:
        of_weights["spectral_growth"] = worst(spectral_growth(lm, update).values())
    if looked is None:
        assert task.entrant.editor_of is not None
        before = scoring.before(lm, [task.case])
        with task.entrant.editor_of(task.case).applied(update):
            (looked,) = scoring.look(lm, [task.case], before)
    payload = looked.payload()
    payload["scores"] |= of_weights
    if any(score is not None and not math.isfinite(score) for score in payload["scores"].values()):
        raise RequestError("the edited model gives no numbers; the update is too large")
    return Edited(
        payload | {"bytes": patch_bytes(update), "norms": norms}, known.seconds, known.mebibytes
    )
