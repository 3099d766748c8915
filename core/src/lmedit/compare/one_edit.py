"""One candidate on one case: compute its edit, apply it, score it. A failure has a reason."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmedit.edits.ledger import sum_of
from lmedit.errors import LmeditError, ModelChangedError, RequestError, UnsoundEditWarning
from lmedit.memory import peak_memory
from lmedit.metrics.harm import damage, unsound
from lmedit.metrics.weights import patch_bytes, relative_norms, spectral_growth, survival, worst
from lmedit.storage.json_files import whole_text
from lmedit.storage.steps import spared_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lmedit.compare.candidates import Candidate
    from lmedit.compare.case_scores import Scoring
    from lmedit.compare.result import Result
    from lmedit.models import Lm
    from lmedit.pipeline import Editor
    from lmedit.types import Case, Update


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
    """The update that *work* computes, with its seconds and its memory.

    A remembered result counts with the seconds of its computation (`storage.steps.tell_spared`).
    """
    lm.state()  # read all weights before the clock starts
    with peak_memory(lm.device) as peak, spared_seconds() as spared:
        started = time.perf_counter()
        with told_elsewhere():
            update = work()
        seconds = time.perf_counter() - started + sum(spared)
    return Computed(update, seconds, peak.mebibytes)


def compute_together(lm: Lm, editor: Editor, cases: Sequence[Case]) -> list[Computed]:
    """The update of each of *cases*, computed together; each has an equal share of the seconds.

    Empty if one of them fails: then each is tried alone.
    """
    lm.state()
    try:
        with peak_memory(lm.device) as peak:
            started = time.perf_counter()
            with told_elsewhere():
                updates = editor.compute_many([case.request for case in cases])
            seconds = (time.perf_counter() - started) / len(cases)
    except ModelChangedError:
        raise
    except Exception:  # noqa: BLE001  (a plugin may raise anything)
        return []
    return [Computed(update, seconds, peak.mebibytes) for update in updates]


def compute_case(editor: Editor, case: Case) -> Update:
    """One change that makes all edits of *case*; the model stays unchanged.

    A method with a joint hook computes it at once. Else it is the sum of the single edits. Raises
    `RequestError` if edits of the method cannot be added.
    """
    if not case.further:
        return editor.compute(case.request)
    if editor.joins:
        return editor.compute_joint(case.requests)
    if not editor.adds:
        raise RequestError(
            f"the record has {len(case.requests)} edits, and {editor.name} applies an edit with "
            "hooks of its own, so they cannot be added; leave the method out"
        )
    return sum_of(editor.compute_many(case.requests))


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
