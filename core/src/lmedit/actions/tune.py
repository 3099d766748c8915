"""`tune`: from a plan to a sweep over one method's options that any worker can continue."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lmedit.actions.executing import begin_run, stored_preparations
from lmedit.compare.asking import as_asked
from lmedit.compare.case_scores import Scoring, score_cases
from lmedit.compare.comparison import tasks_of_run
from lmedit.compare.driver import Hands
from lmedit.compare.only import keep_only
from lmedit.compare.tuning import Stage, candidates_of, edits_of, settings_of, spread, tune
from lmedit.compare.worker import Worker
from lmedit.errors import CasesError, RequestError, UsageError
from lmedit.executors import Job
from lmedit.executors.engine import ALONE
from lmedit.options import parse_value
from lmedit.plan import Setup, Tell, set_up, silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.compare.one_edit import Task
    from lmedit.compare.worker import Ended
    from lmedit.executors.engine import Engine
    from lmedit.options import Options
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan

LIMIT = 36


@dataclass(frozen=True)
class Tuning:
    """A loaded and prepared sweep; call it with a run folder to finish the sweep."""

    setup: Setup
    cases: CaseSet
    given: Mapping[str, Any]
    everything: tuple[Options, ...]
    """The options of all settings; one preparation may serve them all."""
    settings: tuple[Mapping[str, Any], ...] = ()
    """The settings to try; with a budget, these are not all settings of the method."""

    def __call__(
        self,
        folder: Path,
        after: Ended | None = None,
        engine: Engine = ALONE,
        tell: Tell = silent,
    ) -> dict[str, Any]:
        """Finish the sweep in *folder*; return the best options with their evidence.

        *engine* runs workers, which may *tell* notes. *after* tells how another process ended that
        did this before.
        """
        (loaded,) = self.setup.methods
        worker, seed = self.worker(), self.setup.plan.drawn_from
        files = stored_preparations([self.editor(setting) for setting in self.settings])
        job = Job(partial(load_tuner, self.setup.plan), worker, files)
        with begin_run(engine, job, folder, tell) as pool:
            return tune(
                self.setup.lm,
                loaded,
                self.cases,
                Stage(folder, seed, after, Hands(worker, pool)),
                given=self.given,
                prepared=self.editor,
                settings=self.settings,
            )

    def worker(self, *, often: bool = False) -> Worker:
        """What computes the groups of this sweep in this process."""
        (loaded,) = self.setup.methods
        lm, cases, seed = self.setup.lm, self.cases, self.setup.plan.drawn_from
        scoring = Scoring(only=cases.only.word if cases.only else None)

        def find(about: str) -> list[Task]:
            candidates = candidates_of(about, loaded, lm, self.editor, seed)
            return tasks_of_run(lm, cases, candidates, scoring)

        return Worker(lm, scoring, find, often=often)

    def trial_seconds(self) -> float:
        """The time to edit one case and to score it, measured now."""
        lm = self.setup.lm
        case = as_asked(lm, replace(self.cases, items=tuple(self.cases.good[:1]))).good[0]
        editor = self.editor(self.settings[0])
        lm.state()  # so that reading all weights for the first time is not counted
        started = time.perf_counter()
        with suppress(RequestError):  # a case that cannot be edited takes its time, too
            editor.compute(case.request)
        score_cases(lm, [case])
        return time.perf_counter() - started

    def within(self, budget: float | None, workers: int, tell: Tell) -> Tuning:
        """The same sweep with as many settings as *budget* seconds allow; *tell* the estimate.

        The estimate is an upper one: a method that edits several cases together is faster. Raises
        `UsageError` if the budget is too short for two settings.
        """
        cases, every = len(self.cases.good), len(self.settings)
        each = self.trial_seconds() / workers

        def seconds(count: int) -> float:
            return each * edits_of(count, cases)

        count = every
        if budget is not None:
            count = max((n for n in range(1, every + 1) if seconds(n) <= budget), default=0)
            if count < min(2, every):
                raise UsageError(
                    f"--budget is too short: {min(2, every)} settings on {cases} cases take about "
                    f"{in_words(seconds(min(2, every)))}; give more time, or a smaller --limit"
                )
        part = "" if count == every else f" of {every}, as --budget allows"
        tell(
            f"{count} settings{part}, {cases} cases: at most about {in_words(seconds(count))} "
            f"({each:.2f} s per edit and its scores)"
        )
        return replace(self, settings=tuple(spread(self.settings, count)))

    def editor(self, setting: Mapping[str, Any]) -> Editor:
        """The editor of one *setting*."""
        (loaded,) = self.setup.methods
        options = self.setup.options(loaded, **setting)
        return self.setup.editor(loaded, options, sweep=self.everything)


def set_up_tuning(plan: Plan, tell: Tell = silent) -> Tuning:
    """Load the method, the model and the cases, and prepare the method.

    It takes the last cases, because `compare` takes the first ones.
    """
    cases = replace(plan, limit=None).load_cases()
    if not plan.only:
        cases = replace(cases, items=cases.items[-(plan.limit or LIMIT) :])
    if not cases.good:
        raise CasesError(f"{cases.name}: none of the last {len(cases.items)} records can be edited")
    setup = set_up(plan, tell)
    if plan.only:
        cases = keep_only(setup.lm, cases, plan.only, plan.limit or LIMIT, last=True)
    (loaded,) = setup.methods
    given = {name: parse_value(value) for name, value in setup.given_options(loaded).items()}
    settings = settings_of(loaded, setup.lm, given)
    everything = tuple(setup.options(loaded, **setting) for setting in settings)
    tuning = Tuning(setup, cases, given, everything, tuple(settings))
    tuning.editor({})
    return tuning


def in_words(seconds: float) -> str:
    """*seconds* as text: 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def load_tuner(plan: Plan) -> Worker:
    """Set everything up again, in another process: what it works with."""
    return set_up_tuning(plan).worker(often=True)
