"""Run a comparison: for every method and case edit, score, revert; a failure is a result.

The run lives in a folder and survives anything: what is finished is never done again, and
several processes may work on it at once.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.artifacts import key_of, write_json
from lmedit.compare.case_scores import PROTOCOL, CaseScores, score_case
from lmedit.compare.rows import summary_row
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import BrokenPluginError, LmeditError, RequestError
from lmedit.metrics.weights import patch_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case

BASE = "base"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """One method on one case; the unedited model is the method `base`, without an editor."""

    key: str
    method: str
    case: Case
    editor: Editor | None


@dataclass(frozen=True)
class Outcome:
    """A finished task. A failed edit has a reason, and counts with the unedited model's scores."""

    method: str
    case: str
    scores: CaseScores | None
    seconds: float | None = None
    failure: str | None = None
    key: str | None = None


def compare(
    lm: Lm, cases: CaseSet, editors: Sequence[Editor], folder: Path, seed: int
) -> dict[str, Any]:
    """Compare *editors* on *cases* in the run *folder*; returns design.md's object.

    Raises `BrokenPluginError` where a method leaves the model changed, and `RunError` where the
    folder cannot be used.
    """
    with RunStore(folder) as store:
        write_json(folder / "cases.json", [case.model_dump(mode="json") for case in cases.good])
        base = _worked(store, lm, _tasks(lm, cases, None))
        runs = {BASE: base}
        for editor in editors:
            runs[editor.name] = _worked(store, lm, _tasks(lm, cases, editor))
    unedited = {outcome.case: outcome.scores for outcome in base}
    by_name = {editor.name: editor for editor in editors}
    rows = []
    for name, outcomes in runs.items():
        rows.append(
            summary_row(name, _complete(name, outcomes, unedited, cases), by_name.get(name))
        )
    return {
        "model": {"name": lm.name, "digest": lm.digest},
        "cases": {"name": cases.name, "digest": cases.digest, "n": len(cases.items)},
        "seed": seed,
        "protocol": PROTOCOL,
        "rows": rows,
    }


def _tasks(lm: Lm, cases: CaseSet, editor: Editor | None) -> list[Task]:
    """The tasks of one method; a key is the digest of all that determines the result."""
    fixed: dict[str, Any] = {"base": lm.digest, "protocol": PROTOCOL, "method": BASE}
    if editor:
        fixed |= {
            "method": editor.name, "version": editor.loaded.version,
            "options": editor.options.model_dump(mode="json"),
            "prepared": editor.prepared.facts.get("key"),
        }  # fmt: skip
    name = editor.name if editor else BASE
    return [
        Task(key_of(case=case.model_dump(mode="json"), **fixed), name, case, editor)
        for case in cases.good
    ]


def _worked(store: RunStore, lm: Lm, tasks: Sequence[Task]) -> list[Outcome]:
    """Finish *tasks*, those that nobody else is at; wait for the others; their outcomes in order.

    Raises `BrokenPluginError`, and drops this process' results, where the model was changed.
    """
    mine: list[str] = []
    try:
        _work(store, lm, tasks, mine)
    finally:
        _check_base(store, lm, tasks, mine)
    stored = [store.get(task.key) for task in tasks]
    return [_outcome(result, task) for result, task in zip(stored, tasks, strict=True) if result]


def _work(store: RunStore, lm: Lm, tasks: Sequence[Task], mine: list[str]) -> None:
    """Do what is left of *tasks*; the keys of those done here are added to *mine*."""
    waiting = list(tasks)
    with tqdm(total=len(tasks), desc=tasks[0].method if tasks else "", unit="case", disable=None,
              leave=False) as bar:  # fmt: skip
        while waiting:
            left = [task for task in waiting if not _finished(store, lm, task, mine)]
            bar.update(len(waiting) - len(left))
            if len(left) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = left


def _check_base(store: RunStore, lm: Lm, tasks: Sequence[Task], mine: list[str]) -> None:
    if lm.weights_digest() != lm.digest:
        store.drop(mine)
        raise BrokenPluginError(
            f"method {tasks[0].method!r} changed the model outside apply and revert; its results "
            "are dropped, load the model again"
        )


def _finished(store: RunStore, lm: Lm, task: Task, mine: list[str]) -> bool:
    """Whether *task* is finished, if need be by doing it now."""
    if store.get(task.key) is not None:
        return True
    if not store.claim(task.key):
        return False
    payload, seconds = _result(lm, task)
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False)
    store.put(Stored(task.key, task.method, task.case.id, text, seconds))
    mine.append(task.key)
    return True


def _result(lm: Lm, task: Task) -> tuple[dict[str, Any], float | None]:
    """The payload of a finished task, and the seconds of the edit."""
    if task.editor is None:
        return {"scores": score_case(lm, task.case).as_dict()}, None
    try:
        return edit_case(lm, task.case, task.editor)
    except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
        return {"failure": str(error) if isinstance(error, LmeditError) else repr(error)}, None


def edit_case(lm: Lm, case: Case, editor: Editor) -> tuple[dict[str, Any], float]:
    """Edit, score, revert; the seconds are those of computing the update, not of scoring."""
    started = time.perf_counter()
    update = editor.compute(case.request)
    seconds = time.perf_counter() - started
    with editor.applied(update):
        scores = score_case(lm, case).as_dict()
    if any(score is not None and not math.isfinite(score) for score in scores.values()):
        raise RequestError("the edited model gives no numbers; the update is too large")
    return {"scores": scores, "bytes": patch_bytes(update)}, seconds


def _outcome(stored: Stored, task: Task) -> Outcome:
    payload = json.loads(stored.payload)
    scores = CaseScores(**payload["scores"]) if "scores" in payload else None
    return Outcome(
        task.method, task.case.id, scores, stored.seconds, payload.get("failure"), task.key
    )


def _complete(
    name: str,
    outcomes: Sequence[Outcome],
    unedited: dict[str, CaseScores | None],
    cases: CaseSet,
) -> list[Outcome]:
    """Failed edits with the unedited model's scores, and a failure for each broken record."""
    full = [replace(o, scores=unedited[o.case], seconds=None) if o.failure else o for o in outcomes]
    return full + [Outcome(name, item.id, None, failure=str(item)) for item in cases.broken]
