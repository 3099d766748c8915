"""Run a comparison: for every method and case edit, score, revert; a failure is a result.

The run lives in a folder and survives anything: what is finished is never done again, and
several processes may work on it at once.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.artifacts import key_of, write_json
from lmedit.compare.case_scores import Scoring
from lmedit.compare.entrants import BASE, Entrant, of_editor
from lmedit.compare.measures import protocol
from lmedit.compare.memory import peak_memory
from lmedit.compare.rows import PARTS, summary_row
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import BrokenPluginError, LmeditError, RequestError
from lmedit.hyper.training import trained_on
from lmedit.metrics.bootstrap import Interval, paired_difference, paired_score_difference
from lmedit.metrics.weights import patch_bytes, relative_norms, spectral_growth, worst

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Request, Update

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """One entrant on one case."""

    key: str
    case: Case
    entrant: Entrant


@dataclass(frozen=True)
class Outcome:
    """A finished task. A failed edit has a reason, and counts with the unedited model's scores."""

    method: str
    case: str
    scores: Mapping[str, float | None] | None
    seconds: float | None = None
    failure: str | None = None
    key: str | None = None
    extras: Mapping[str, float | None] = field(default_factory=dict)
    """Numbers of the edit rather than of the edited model: bytes, memory."""


@dataclass(frozen=True)
class Edited:
    """What an edited case gave: the payload to keep, and what differs from run to run."""

    payload: dict[str, Any]
    seconds: float | None = None
    mebibytes: float | None = None


def compare(
    lm: Lm,
    cases: CaseSet,
    editors: Sequence[Editor],
    folder: Path,
    seed: int,
    scoring: Scoring | None = None,
    baselines: Sequence[Entrant] = (),
) -> dict[str, Any]:
    """Compare *editors* on *cases* in the run *folder*; returns design.md's object.

    The unedited model comes first, *baselines* last. Raises `BrokenPluginError` where a method
    leaves the model changed, and `RunError` where the folder cannot be used.
    """
    scoring = scoring or Scoring()
    entrants = [Entrant(BASE), *map(of_editor, editors), *baselines]
    with RunStore(folder) as store:
        write_json(folder / "cases.json", [case.model_dump(mode="json") for case in cases.good])
        runs = {
            entrant.name: _worked(store, lm, _tasks(lm, cases, entrant, scoring), scoring)
            for entrant in entrants
        }
    unedited = {outcome.case: outcome.scores for outcome in runs[BASE]}
    full = {name: _complete(name, found, unedited, cases) for name, found in runs.items()}
    return {
        **heading(lm, cases, seed, scoring, entrants),
        "rows": [summary_row(e.name, full[e.name], e.editor) for e in entrants],
        "differences": differences({e.name: full[e.name] for e in entrants[1:]}, seed),
    }


def heading(
    lm: Lm, cases: CaseSet, seed: int, scoring: Scoring, entrants: Sequence[Entrant]
) -> dict[str, Any]:
    """What was compared on what, and how: the head of every results object.

    `trained_on` counts, for each method that is trained, the cases that were in its training.
    """
    seen = {
        e.name: sum(trained_on(e.editor.prepared, case.request) for case in cases.good)
        for e in entrants if e.editor and e.editor.loaded.method.prepares_on == "cases"
    }  # fmt: skip
    return {
        "model": {"name": lm.name, "digest": lm.digest},
        "cases": {"name": cases.name, "digest": cases.digest, "n": len(cases.items)},
        "seed": seed,
        "trained_on": seen,
        "protocol": protocol(scoring.groups),
    }


def _tasks(lm: Lm, cases: CaseSet, entrant: Entrant, scoring: Scoring) -> list[Task]:
    """The tasks of one entrant; a key is the digest of all that determines the result."""
    fixed: dict[str, Any] = {
        "base": lm.digest, "method": entrant.name, "protocol": protocol(scoring.groups),
        "resources": scoring.digest,
    }  # fmt: skip
    tasks = []
    for case in cases.good:
        of_editor: dict[str, Any] = {}
        if entrant.editor_of is not None:
            of_editor = identity(entrant.editor_of(case))
        tasks.append(Task(key_of(case=case.model_dump(mode="json"), **fixed, **of_editor),
                          case, entrant))  # fmt: skip
    return tasks


def identity(editor: Editor) -> dict[str, Any]:
    """All of an editor that decides what its edits are."""
    return {
        "version": editor.loaded.version,
        "options": editor.options.model_dump(mode="json"),
        "prepared": editor.prepared.facts.get("key"),
    }


def _worked(store: RunStore, lm: Lm, tasks: Sequence[Task], scoring: Scoring) -> list[Outcome]:
    """Finish *tasks*, those that nobody else is at; wait for the others; their outcomes in order.

    Raises `BrokenPluginError`, and drops this process' results, where the model was changed.
    """
    mine: list[str] = []
    try:
        _work(store, lm, tasks, scoring, mine)
    finally:
        check_base(store, lm, tasks[0].entrant.name if tasks else BASE, mine)
    stored = [store.get(task.key) for task in tasks]
    return [outcome(result, task.entrant.name)
            for result, task in zip(stored, tasks, strict=True) if result]  # fmt: skip


def _work(
    store: RunStore, lm: Lm, tasks: Sequence[Task], scoring: Scoring, mine: list[str]
) -> None:
    """Do what is left of *tasks*; the keys of those done here are added to *mine*."""
    waiting = list(tasks)
    name = tasks[0].entrant.name if tasks else ""
    with tqdm(total=len(tasks), desc=name, unit="case", disable=None, leave=False) as bar:
        while waiting:
            left = [task for task in waiting if not _finished(store, lm, task, scoring, mine)]
            bar.update(len(waiting) - len(left))
            if len(left) == len(waiting):
                time.sleep(POLL_SECONDS)
            waiting = left


def check_base(store: RunStore, lm: Lm, method: str, mine: Sequence[str]) -> None:
    """Drop the results *mine* and raise `BrokenPluginError` where *lm* is not the base."""
    if lm.weights_digest() != lm.digest:
        store.drop(mine)
        raise BrokenPluginError(
            f"method {method!r} changed the model outside apply and revert; its results are "
            "dropped, load the model again"
        )


def _finished(store: RunStore, lm: Lm, task: Task, scoring: Scoring, mine: list[str]) -> bool:
    """Whether *task* is finished, if need be by doing it now."""
    if store.get(task.key) is not None:
        return True
    if not store.claim(task.key):
        return False
    keep(store, task.key, task.entrant.name, task.case.id, _result(lm, task, scoring))
    mine.append(task.key)
    return True


def keep(store: RunStore, key: str, method: str, case_id: str, edited: Edited) -> None:
    """Put a finished task into the store."""
    text = json.dumps(edited.payload, sort_keys=True, ensure_ascii=False)
    store.put(Stored(key, method, case_id, text, edited.seconds, edited.mebibytes))


def _result(lm: Lm, task: Task, scoring: Scoring) -> Edited:
    """Do *task*; whatever a method raises is a failure of this case."""
    entrant = task.entrant
    if entrant.editor_of is None:
        before = scoring.before(lm, task.case)
        looked = scoring.look(lm, entrant.asked(task.case), before, edited=False)
        return Edited(looked.payload())
    try:
        return edit_case(lm, task.case, entrant.editor_of(task.case), scoring)
    except Exception as error:  # noqa: BLE001  (a stranger's method may raise anything)
        return Edited({"failure": failure_of(error)})


def failure_of(error: Exception) -> str:
    """Why an edit failed, in a line."""
    return str(error) if isinstance(error, LmeditError) else repr(error)


def computed(lm: Lm, editor: Editor, request: Request) -> tuple[Update, float, float | None]:
    """The update of *request*, with the seconds and the peak MiB that computing it took."""
    with peak_memory(lm.device) as peak:
        started = time.perf_counter()
        update = editor.compute(request)
        seconds = time.perf_counter() - started
    return update, seconds, peak.mebibytes


def edit_case(lm: Lm, case: Case, editor: Editor, scoring: Scoring) -> Edited:
    """Edit, score, revert; seconds and memory are those of computing the update, not of scoring."""
    update, seconds, mebibytes = computed(lm, editor, case.request)
    before = scoring.before(lm, case)
    norms = relative_norms(lm, update)
    of_weights = {"relative_norm": worst(norms.values())}
    if "health" in scoring.groups:
        of_weights["spectral_growth"] = worst(spectral_growth(lm, update).values())
    with editor.applied(update):
        looked = scoring.look(lm, case, before)
    payload = looked.payload()
    payload["scores"] |= of_weights
    if any(score is not None and not math.isfinite(score) for score in payload["scores"].values()):
        raise RequestError("the edited model gives no numbers; the update is too large")
    return Edited(payload | {"bytes": patch_bytes(update), "norms": norms}, seconds, mebibytes)


def outcome(stored: Stored, method: str) -> Outcome:
    """What the store keeps of a task, read back."""
    payload = json.loads(stored.payload)
    extras = {"patch_bytes": payload.get("bytes"), "peak_mebibytes": stored.mebibytes}
    return Outcome(
        method, stored.case_id, payload.get("scores"), stored.seconds, payload.get("failure"),
        stored.key, extras,
    )  # fmt: skip


def _complete(
    name: str,
    outcomes: Sequence[Outcome],
    unedited: dict[str, Mapping[str, float | None] | None],
    cases: CaseSet,
) -> list[Outcome]:
    """Failed edits with the unedited model's scores, and a failure for each broken record."""
    full = [replace(o, scores=unedited[o.case], seconds=None) if o.failure else o for o in outcomes]
    return full + [Outcome(name, item.id, None, failure=str(item)) for item in cases.broken]


def differences(full: Mapping[str, Sequence[Outcome]], seed: int) -> list[dict[str, Any]]:
    """For each two entrants and each of S, ES, PS and NS: the paired difference, in points.

    With its 95 % interval by bootstrap over cases (`bootstrap.PROTOCOL`).
    """
    records = {
        name: [[(o.scores or {}).get(part) for part in PARTS] for o in outcomes]
        for name, outcomes in full.items()
    }
    found = []
    for one, other in combinations(records, 2):
        a, b = records[one], records[other]
        intervals = {"S": paired_score_difference(a, b, seed)}
        for place, part in enumerate(PARTS):
            mine, theirs = ([record[place] for record in side] for side in (a, b))
            intervals[part] = paired_difference(mine, theirs, seed)
        found += [
            {"one": one, "other": other, "score": score, **_points(interval)}
            for score, interval in intervals.items() if interval is not None
        ]  # fmt: skip
    return found


def _points(interval: Interval) -> dict[str, float]:
    return {"estimate": 100 * interval.estimate, "low": 100 * interval.low,
            "high": 100 * interval.high}  # fmt: skip
