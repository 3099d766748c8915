"""`tune`: from a plan to a sweep over one method's options that any worker can continue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lmedit.compare.tuning import settings_of, tune
from lmedit.options import parse_value
from lmedit.plan import Setup, Tell, set_up, silent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmedit.cases import CaseSet
    from lmedit.options import Options
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan

DEFAULT_CASES, LIMIT = "demo", 36


@dataclass(frozen=True)
class Tuning:
    """A loaded and prepared sweep; call it with a run folder to finish the sweep."""

    setup: Setup
    cases: CaseSet
    given: Mapping[str, Any]
    everything: tuple[Options, ...]
    """The options of all settings; one preparation may serve them all."""

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Finish the sweep in *folder*; return the best options with their evidence."""
        (loaded,) = self.setup.methods
        return tune(
            self.setup.lm,
            loaded,
            self.cases,
            folder,
            given=self.given,
            prepared=self.editor,
            seed=self.setup.plan.drawn_from,
        )

    def editor(self, setting: Mapping[str, Any]) -> Editor:
        """The editor of one *setting*."""
        (loaded,) = self.setup.methods
        options = self.setup.options(loaded, **setting)
        return self.setup.editor(loaded, options, sweep=self.everything)


def set_up_tuning(plan: Plan, tell: Tell = silent) -> Tuning:
    """Load the method, the model and the cases, and prepare the method.

    It takes the last cases, because `compare` takes the first ones.
    """
    cases = replace(plan, limit=None).load_cases(DEFAULT_CASES)
    setup = set_up(plan, tell)
    cases = replace(cases, items=cases.items[-(plan.limit or LIMIT) :])
    (loaded,) = setup.methods
    given = {name: parse_value(value) for name, value in setup.given_options(loaded).items()}
    settings = settings_of(loaded, setup.lm, given)
    everything = tuple(setup.options(loaded, **setting) for setting in settings)
    tuning = Tuning(setup, cases, given, everything)
    tuning.editor({})
    return tuning


def take_part(plan: Plan, folder: Path) -> None:
    """Set everything up again and do the remaining tasks in *folder*, as another worker."""
    set_up_tuning(plan)(folder)
