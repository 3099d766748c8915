"""The scores of one case on the model as it is now, edited or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import FOLLOWS
from lmedit.metrics import locality, scores, texts, zsre
from lmedit.metrics.generate import greedy, sampled
from lmedit.metrics.scorer import score_targets
from lmedit.metrics.scores import Contrast, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.metrics.health import HeldOut
    from lmedit.metrics.scorer import TargetScore
    from lmedit.metrics.texts import References
    from lmedit.models import Lm
    from lmedit.types import Case, Probe

    Scores = dict[str, float | None]
    Asked = tuple[str, int, tuple[str, str]]

NEW_TOKENS, TEXT_TOKENS = 20, 100
"""New tokens of a greedy answer; tokens of a sampled text, its prompt with it."""


@dataclass(frozen=True)
class Looked:
    """What was measured on one case: scores by name, and what the model wrote, by prompt's kind."""

    scores: Scores
    generated: dict[str, str] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """As the store keeps it."""
        written = {"generated": self.generated} if self.generated else {}
        return {"scores": self.scores, **written}


@dataclass(frozen=True)
class Scoring:
    """What is measured on a case: the groups of `measures.GROUPS`, and what they need."""

    groups: frozenset[str] = frozenset()
    heldout: HeldOut | None = None
    references: References | None = None
    seed: int = 0

    def before(self, lm: Lm, case: Case) -> Tensor | None:
        """What must be seen on the base model: its next tokens after the neighbours."""
        if "locality" not in self.groups:
            return None
        return locality.next_log_probabilities(lm, case.neighbours)

    @property
    def digest(self) -> list[str | int | None]:
        """What the scores depend on beside the model, the case and the groups."""
        return [self.seed if "text" in self.groups else None,
                self.heldout.digest if self.heldout else None,
                self.references.digest if self.references else None]  # fmt: skip

    def look(self, lm: Lm, case: Case, before: Tensor | None, *, edited: bool = True) -> Looked:
        """Everything measured on *case*, on *lm* as it is now; *before* is from the base."""
        found = score_case(lm, case)
        written: dict[str, str] = {}
        if "locality" in self.groups and before is not None:
            found |= _locality(lm, case, before)
        if "generation" in self.groups:
            written |= _generated(lm, case)
            found |= _generation(lm, case, written["rewrite"])
        if "text" in self.groups:
            own = sampled(lm, case.generation, TEXT_TOKENS, seed=self.seed)
            written |= {f"text {number}": text for number, text in enumerate(own, 1)}
            found |= _texts(lm, case, own, self.references)
        if self.heldout is not None:
            found |= self.heldout.measure(lm) if edited else self.heldout.base
        return Looked(found, written)


def score_case(lm: Lm, case: Case) -> Scores:
    """The scores that every comparison measures, by name (`measures.MEASURES`); None for no probes.

    One batch for the probability contrasts and what must stay or follow; shares are in [0, 1].
    """
    request = case.request
    prompts = [request.text, *case.paraphrases, *case.neighbours]
    groups = {FOLLOWS + name: probes for name, probes in case.groups.items()}
    asked = _asked({"relation_specificity": case.relations} | groups)
    pairs = _pairs(case, prompts)
    scored = score_targets(lm, [*pairs, *(pair for _, _, pair in asked)])
    contrasts = _contrasts(scored[: len(pairs)])
    cut = 1 + len(case.paraphrases)
    rewrite, paraphrases, neighbours = contrasts[:1], contrasts[1:cut], contrasts[cut:]
    found: Scores = {
        "ES": mean([scores.success(c) for c in rewrite]),
        "EM": mean([scores.magnitude(c) for c in rewrite]),
        "PS": mean([scores.success(c) for c in paraphrases]),
        "PM": mean([scores.magnitude(c) for c in paraphrases]),
        "NS": mean([scores.kept(c) for c in neighbours]),
        "NM": mean([scores.kept_magnitude(c) for c in neighbours]),
        "relation_specificity": None,
        **dict.fromkeys(groups),
    }
    found |= _right(asked, [score.correct for score in scored[len(pairs) :]])
    if case.locality or request.target_true is None:
        known = [(probe.prompt, probe.answer) for probe in case.locality]
        three = zsre.zsre_scores(lm, request.target_new, request.text, case.paraphrases, known)
        found |= {"efficacy": three.efficacy, "paraphrase": three.paraphrase,
                  "specificity": three.specificity}  # fmt: skip
    return found


def _pairs(case: Case, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Each prompt with the new and then the true answer; none where the true one is not known."""
    new, true = case.request.target_new, case.request.target_true
    return [] if true is None else [(p, target) for p in prompts for target in (new, true)]


def _contrasts(scored: Sequence[TargetScore]) -> list[Contrast]:
    """The scores of `_pairs`, two by two."""
    logs = [score.log_probability for score in scored]
    return [Contrast(*pair) for pair in zip(logs[::2], logs[1::2], strict=True)]


def _asked(groups: dict[str, tuple[Probe, ...]]) -> list[Asked]:
    """Each spelling of each probe's answer: the group, the probe's number in it, the pair."""
    return [
        (name, number, (probe.prompt, answer))
        for name, probes in groups.items()
        for number, probe in enumerate(probes)
        for answer in (probe.answer, *probe.aliases)
    ]


def _right(asked: Sequence[Asked], correct: Sequence[bool]) -> Scores:
    """For each group the share of probes whose answer, in one spelling, is top-1 throughout."""
    right: dict[str, dict[int, bool]] = {}
    for (name, number, _), hit in zip(asked, correct, strict=True):
        of_group = right.setdefault(name, {})
        of_group[number] = of_group.get(number, False) or hit
    return {name: mean([float(hit) for hit in hits.values()]) for name, hits in right.items()}


def _locality(lm: Lm, case: Case, before: Tensor) -> Scores:
    """NS and NM with the edit's sentence in front (CounterFact+), and KL on the neighbours."""
    behind = [locality.with_edit(case.request, prompt) for prompt in case.neighbours]
    contrasts = _contrasts(score_targets(lm, _pairs(case, behind)))
    after = locality.next_log_probabilities(lm, case.neighbours)
    return {
        "NS_plus": mean([scores.kept(c) for c in contrasts]),
        "NM_plus": mean([scores.kept_magnitude(c) for c in contrasts]),
        "neighbour_KL": locality.mean_kl(before, after),
    }


def _generated(lm: Lm, case: Case) -> dict[str, str]:
    """What the model writes by itself after the rewrite prompt and the paraphrases."""
    prompts = {"rewrite": case.request.text}
    prompts |= {f"paraphrase {number}": p for number, p in enumerate(case.paraphrases, 1)}
    return dict(zip(prompts, greedy(lm, list(prompts.values()), NEW_TOKENS), strict=True))


def _generation(lm: Lm, case: Case, written: str) -> Scores:
    target = case.request.target_new
    forced = float(score_targets(lm, [(case.request.text, target)])[0].correct)
    holds = texts.contains(written, target)
    return {
        "exact_match": texts.exact_match(written, target),
        "contains": holds,
        "teacher_forced": forced,
        "generation_gap": forced - holds,
    }


def _texts(lm: Lm, case: Case, own: list[str], references: References | None) -> Scores:
    """GE of the sampled texts; RS and essence where there are reference texts of the case."""
    found: Scores = {"GE": texts.generation_entropy(own)}
    if references is None:
        return found
    same, subjects = references.of(case)
    rs = texts.reference_score(own, same, references.tfidf) if own and same else None
    return found | {"RS": rs, "essence": texts.essence_perplexity(lm, subjects)}
