"""The scores of one case on the model as it is now, edited or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lmedit.metrics import scores as formulas
from lmedit.metrics.scorer import score_targets
from lmedit.metrics.scores import Contrast, mean

if TYPE_CHECKING:
    from lmedit.models import Lm
    from lmedit.types import Case

PROTOCOL = {
    "ES EM PS PM NS NM S": formulas.PROTOCOL,
    "relation_specificity": "teacher-forced, all target tokens top-1",
}
"""How each score is measured; it is part of every result's key."""


@dataclass(frozen=True)
class CaseScores:
    """One record's scores in [-1, 1]; None where the case has no such probes.

    `relation_specificity`: the share of the subject's other facts that are still answered right
    (all target tokens top-1, teacher-forced).
    """

    ES: float | None
    EM: float | None
    PS: float | None
    PM: float | None
    NS: float | None
    NM: float | None
    relation_specificity: float | None

    def as_dict(self) -> dict[str, Any]:
        """The scores by name."""
        return asdict(self)


def score_case(lm: Lm, case: Case) -> CaseScores:
    """Score *case* in one batch: rewrite, paraphrases, neighbours, the subject's other facts."""
    request = case.request
    prompts = [request.text, *case.paraphrases, *case.neighbours]
    pairs = [(p, request.target_new) for p in prompts]
    if request.target_true is not None:
        pairs += [(p, request.target_true) for p in prompts]
    pairs += [(probe.prompt, probe.answer) for probe in case.relations]
    scores = score_targets(lm, pairs)
    relations = [float(score.correct) for score in scores[len(pairs) - len(case.relations) :]]
    contrasts: list[Contrast] = []
    if request.target_true is not None:
        n = len(prompts)
        contrasts = [
            Contrast(new.log_probability, true.log_probability)
            for new, true in zip(scores[:n], scores[n : 2 * n], strict=True)
        ]
    return _case_scores(contrasts, 1 + len(case.paraphrases), relations)


def _case_scores(contrasts: list[Contrast], cut: int, relations: list[float]) -> CaseScores:
    rewrite, paraphrases, neighbours = contrasts[:1], contrasts[1:cut], contrasts[cut:]
    return CaseScores(
        ES=mean([formulas.success(c) for c in rewrite]),
        EM=mean([formulas.magnitude(c) for c in rewrite]),
        PS=mean([formulas.success(c) for c in paraphrases]),
        PM=mean([formulas.magnitude(c) for c in paraphrases]),
        NS=mean([formulas.kept(c) for c in neighbours]),
        NM=mean([formulas.kept_magnitude(c) for c in neighbours]),
        relation_specificity=mean(relations),
    )
