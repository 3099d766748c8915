"""Measure an edited model against the unedited one, in the terms of limits.

With a case of the same fact, ES, PS and NS are those of `lmedit compare`. Else the present answer
of a prompt is the unedited model's top token. ES, PS and NS then compare the new answer with it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmedit.compare.case_scores import Scoring
from lmedit.compare.limits import ABILITIES, RATIO, groups_of, in_units, tasks_of
from lmedit.metrics import counterfact
from lmedit.metrics.abilities import Abilities
from lmedit.metrics.ability_tasks import Wanted, check_include, load_tasks
from lmedit.metrics.counterfact import Contrast, harmonic_mean, mean
from lmedit.metrics.locality import next_log_probabilities, with_edit
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay.unmerged import under_one

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.actions.judged import Judged
    from lmedit.compare.limits import Limit
    from lmedit.metrics.health import HeldOut
    from lmedit.models import Lm
    from lmedit.replay.unmerged import UnmergedEdits

    Values = dict[str, float | None]


class Gauge:
    """Measures one model before and after edits. Create it while the model is unedited."""

    def __init__(
        self,
        lm: Lm,
        facts: Sequence[Judged],
        limits: Sequence[Limit],
        held: HeldOut,
        seed: int = 0,
        tasks: Wanted | None = None,
    ) -> None:
        """*facts* judge the edits, *held* has the unedited model's predictions of a text.

        *tasks* are those of the limits `abilities.TASK`; see `tasks_for`.
        """
        self.lm, self.held = lm, held
        self.facts = tuple(facts)
        self.scoring = Scoring(groups_of(limits), seed=seed)
        self.abilities = Abilities(lm, tasks) if tasks else None
        self._before = self.scoring.before(lm, [fact.case for fact in facts])
        self._present = [None if fact.true_known else _Present(lm, fact) for fact in facts]

    def measure(self, edits: UnmergedEdits | None = None) -> Values:
        """The values of the model as it is now, or with *edits*, one edit of the only fact.

        They are means over the facts, in the units of limits. None: no fact measures this term.
        """
        cases = [fact.case for fact in self.facts]
        scored = self.scoring.score(self.lm, cases, self._before, edits) if cases else []
        rows: list[Values] = [dict(result.scores or {}) for result in scored]
        plus = "locality" in self.scoring.groups
        for row, present in zip(rows, self._present, strict=True):
            row.update(present.measure(edits, plus=plus) if present else {})
        found: Values = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            found[name] = mean([value for row in rows if (value := row.get(name)) is not None])
        found["S"] = harmonic_mean([found.get(name) for name in ("ES", "PS", "NS")])
        three = [found.get(name) for name in ("efficacy", "paraphrase", "specificity")]
        found["zsre_S"] = harmonic_mean(three)
        found |= self.held.measure(self.lm, under_one(edits, 1))
        found[RATIO.name] = _ratio(found["perplexity"], self.held.base["perplexity"])
        if self.abilities is not None:
            after = self.abilities.measure(under_one(edits, 1))
            differences = self.abilities.first_differences(after)
            found |= {ABILITIES + name: value for name, value in differences.items()}
        return in_units(found)


def tasks_for(
    limits: Sequence[Limit], include: Path | None = None, *, download: bool = False
) -> Wanted | None:
    """The tasks that *limits* name; None if they name none. No model is needed.

    Raises the errors of `load_tasks`.
    """
    names = tasks_of(limits)
    if not names:
        return None
    wanted = Wanted(names, include, download=download)
    check_include(include)
    load_tasks(wanted)
    return wanted


def _ratio(after: float | None, before: float | None) -> float | None:
    if after is None or not before:
        return None
    return after / before


class _Present:
    """ES, PS, NS and their magnitudes of a fact whose prompts have different present answers."""

    def __init__(self, lm: Lm, fact: Judged) -> None:
        self.lm, self.case = lm, fact.case
        case = fact.case
        self.prompts = [*fact.prompts, *case.neighbours]
        logs = next_log_probabilities(lm, self.prompts)
        self.top = [int(row.argmax()) for row in logs]
        new = lm.with_target(case.request.text, case.request.target_new)[1][0]
        cut = len(fact.prompts)
        self.own, self.near = range(1, cut), range(cut, len(self.prompts))
        # A neighbour whose present answer is the new one tells nothing about the edit.
        self.near_kept = [i for i in self.near if self.top[i] != new]

    def measure(self, edits: UnmergedEdits | None, *, plus: bool) -> Values:
        """The scores now, or under *edits*; with *plus*, also those with the edit in front."""
        contrasts = self._contrasts(self.prompts, edits)
        near = [contrasts[i] for i in self.near_kept]
        own = [contrasts[i] for i in self.own]
        found: Values = {
            "ES": counterfact.success(contrasts[0]),
            "EM": counterfact.magnitude(contrasts[0]),
            "PS": mean([counterfact.success(each) for each in own]),
            "PM": mean([counterfact.magnitude(each) for each in own]),
            "NS": mean([counterfact.specificity(each) for each in near]),
            "NM": mean([counterfact.specificity_magnitude(each) for each in near]),
        }
        if plus:
            request = self.case.request
            behind = [with_edit(request, prompt, self.lm) for prompt in self.case.neighbours]
            several = self._contrasts([*self.prompts[: self.near.start], *behind], edits)
            near = [several[i] for i in self.near_kept]
            found["NS_plus"] = mean([counterfact.specificity(each) for each in near])
            found["NM_plus"] = mean([counterfact.specificity_magnitude(each) for each in near])
        return found

    def _contrasts(self, prompts: Sequence[str], edits: UnmergedEdits | None) -> list[Contrast]:
        """For each of *prompts*: log P per token of the new answer, and of the present answer."""
        request = self.case.request
        under = under_one(edits, len(prompts))
        new = score_targets(self.lm, [(p, request.target_new) for p in prompts], under=under)
        logs = next_log_probabilities(self.lm, prompts, under=under)
        true = [float(logs[i, token]) for i, token in enumerate(self.top)]
        if request.target_true is not None:  # the true answer of the fact and its paraphrases
            cut = self.near.start
            pairs = [(prompt, request.target_true) for prompt in prompts[:cut]]
            part = under_one(edits, cut)
            told = score_targets(self.lm, pairs, under=part)
            true[:cut] = [score.log_probability for score in told]
        return [
            Contrast(score.log_probability, old if math.isfinite(old) else -math.inf)
            for score, old in zip(new, true, strict=True)
        ]
