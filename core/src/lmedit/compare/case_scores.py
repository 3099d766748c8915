"""The scores of one case on the present model, edited or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lmedit.compare.measures import FOLLOWS
from lmedit.compare.result import Result
from lmedit.compare.wild_scores import Wild
from lmedit.metrics import counterfact, generated_text, locality, zsre
from lmedit.metrics.counterfact import Contrast, mean
from lmedit.metrics.generate import greedy, sample
from lmedit.metrics.stress import score_stress, settle_stress
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay.unmerged import RowEdits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit.metrics.abilities import Abilities
    from lmedit.metrics.generated_text import References
    from lmedit.metrics.health import HeldOut
    from lmedit.metrics.teacher_forcing import TargetScore
    from lmedit.models import Lm
    from lmedit.replay.unmerged import UnmergedEdits
    from lmedit.types import Case, FurtherEdit, Probe

    Scores = dict[str, float | None]
    Asked = tuple[str, int, tuple[str, str]]

Item = TypeVar("Item")
Found = TypeVar("Found")
NEW_TOKENS, TEXT_TOKENS = 20, 100
"""New tokens of a greedy answer, and all tokens of a sampled text, with its prompt."""


@dataclass(frozen=True)
class Scoring:
    """The measures of a case: groups of `measures.GROUPS`, and the data that they need."""

    groups: frozenset[str] = frozenset()
    heldout: HeldOut | None = None
    references: References | None = None
    seed: int = 0
    abilities: Abilities | None = None
    """Tasks of the lm-evaluation-harness; it measures the whole model after each edit."""
    wild: Wild = field(default_factory=Wild)
    """How the group `wild` asks."""
    treebank: bool = False
    """Whether GE counts the words of the published GE, if the table shows published figures."""
    only: str | None = None
    """The word of --only: the answers of the unedited model that the cases were picked by."""

    def before(self, lm: Lm, cases: Sequence[Case]) -> list[Tensor | None]:
        """Measure the base model: for each case the next tokens after its neighbours, or None."""
        if "wild" in self.groups:
            self.wild.read_base(lm, cases)
        if "stress" in self.groups:
            settle_stress(lm, cases)
        if "locality" not in self.groups:
            return [None] * len(cases)
        return _neighbours(lm, cases, None)

    @property
    def digest(self) -> list[str | int | None]:
        """A digest of the data and settings that change the scores of a case."""
        return [
            self.seed if "text" in self.groups else None,
            self.heldout.digest if self.heldout else None,
            self.references.digest if self.references else None,
            *([self.abilities.digest] if self.abilities else []),
            *([self.wild.form] if "wild" in self.groups else []),
            *(["treebank"] if self.treebank and "text" in self.groups else []),
            *([f"only {self.only}"] if self.only else []),
        ]

    def score(
        self,
        lm: Lm,
        cases: Sequence[Case],
        before: Sequence[Tensor | None],
        edits: UnmergedEdits | None = None,
        *,
        edited: bool = True,
    ) -> list[Result]:
        """Measure everything on each of *cases*; *before* comes from the base model.

        Use *lm* as it is now, or, with *edits*, edit i for case i.
        """
        under = RowEdits(edits, range(len(cases))) if edits else None
        found = score_cases(lm, cases, under)
        written: list[dict[str, str]] = [{} for _ in cases]
        if "locality" in self.groups:
            _join(found, _locality(lm, cases, before, under))
        if "stress" in self.groups:
            _join(found, score_stress(lm, cases, under))
        if "generation" in self.groups:
            _join(written, answers := _generate(lm, cases, under))
            _join(found, _score_generation(lm, cases, answers, under))
        if "wild" in self.groups:
            free = self.wild.score(lm, cases, under)
            _join(found, [scores for scores, _ in free])
            _join(written, [texts for _, texts in free])
        if "text" in self.groups:
            own = self._sample(lm, cases, under)
            _join(written, [{f"text {n}": text for n, text in enumerate(t, 1)} for t in own])
            _join(found, _score_texts(lm, cases, own, self.references, under))
            if self.treebank:
                fluent = [generated_text.generation_entropy(t, treebank=True) for t in own]
                _join(found, [{"GE": value} for value in fluent])
        if self.heldout is not None:
            for number in range(len(found)):
                alone = under and RowEdits(under.edits, [number])
                found[number] |= self.heldout.measure(lm, alone) if edited else self.heldout.base
        tasks: list[Any] = [{} for _ in cases]
        if self.abilities is not None and edited:
            ones = [under and RowEdits(under.edits, [number]) for number in range(len(cases))]
            tasks = [self.abilities.measure(alone) for alone in ones]
        three = zip(found, written, tasks, strict=True)
        return [Result(scores, texts, abilities=of) for scores, texts, of in three]

    def _sample(self, lm: Lm, cases: Sequence[Case], under: RowEdits | None) -> list[list[str]]:
        prompts = [case.generation for case in cases]

        def write(flat: list[str], each: RowEdits | None) -> list[str]:
            return sample(lm, flat, TEXT_TOKENS, seed=self.seed, under=each)

        return _over_cases(prompts, under, write)


def _join(one: Sequence[dict[str, Any]], other: Sequence[Mapping[str, Any]]) -> None:
    """Add the values of *other* to *one*, case by case."""
    for mine, more in zip(one, other, strict=True):
        mine.update(more)


def _over_cases(
    parts: Sequence[Sequence[Item]],
    under: RowEdits | None,
    work: Callable[[list[Item], RowEdits | None], Sequence[Found]],
) -> list[list[Found]]:
    """Call ``work(items, their edits)`` once with all cases' items; split the result by case."""
    counts = [len(part) for part in parts]
    found = iter(work([item for part in parts for item in part], under and under.repeat(counts)))
    return [[next(found) for _ in range(count)] for count in counts]


def score_cases(lm: Lm, cases: Sequence[Case], under: RowEdits | None = None) -> list[Scores]:
    """The scores of every comparison by name (`measures.MEASURES`); None if there are no probes.

    One batch contains the probability contrasts and the probes that must stay or follow. Shares are
    in [0, 1].
    """
    asked = [_probe_pairs(case) for case in cases]
    pairs = [
        [*_pairs(case, _prompts(case)), *_further_pairs(case), *(pair for _, _, pair in more)]
        for case, more in zip(cases, asked, strict=True)
    ]
    scored = _over_cases(pairs, under, lambda flat, each: score_targets(lm, flat, under=each))
    found = []
    for number, (case, more) in enumerate(zip(cases, asked, strict=True)):
        scores_of = _scores(case, more, scored[number])
        if case.locality or case.request.target_true is None:
            scores_of |= _token_accuracies(lm, case, under and RowEdits(under.edits, [number]))
        found.append(scores_of)
    return found


def _prompts(case: Case) -> list[str]:
    return [case.request.text, *case.paraphrases, *case.neighbours]


def _scores(case: Case, asked: Sequence[Asked], scored: Sequence[TargetScore]) -> Scores:
    """The scores of *case* from *scored*: first its pairs, then the probes *asked*."""
    count = len(_pairs(case, _prompts(case)))
    contrasts = _contrasts(scored[:count])
    cut = 1 + len(case.paraphrases)
    rewrite, paraphrases, neighbours = contrasts[:1], contrasts[1:cut], contrasts[cut:]
    for each in case.further:
        end = count + len(_pairs_of(each))
        own = _contrasts(scored[count:end])
        rewrite, paraphrases = [*rewrite, *own[:1]], [*paraphrases, *own[1:]]
        count = end
    found: Scores = {
        "ES": mean([counterfact.success(c) for c in rewrite]),
        "EM": mean([counterfact.magnitude(c) for c in rewrite]),
        "PS": mean([counterfact.success(c) for c in paraphrases]),
        "PM": mean([counterfact.magnitude(c) for c in paraphrases]),
        "NS": mean([counterfact.specificity(c) for c in neighbours]),
        "NM": mean([counterfact.specificity_magnitude(c) for c in neighbours]),
        "relation_specificity": None,
        **{FOLLOWS + name: None for name in case.groups},
    }
    return found | _share_right(asked, [score.correct for score in scored[count:]])


def _token_accuracies(lm: Lm, case: Case, under: RowEdits | None) -> Scores:
    """The three shares of right tokens of zsRE."""
    request = case.request
    known = [(probe.prompt, probe.answer) for probe in case.locality]
    three = zsre.zsre_scores(
        lm, request.target_new, request.text, case.paraphrases, known, under=under
    )
    return {
        "efficacy": three.efficacy,
        "paraphrase": three.paraphrase,
        "specificity": three.specificity,
    }


def _pairs(case: Case, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Each prompt with the new and the true answer; empty if the true answer is unknown."""
    new, true = case.request.target_new, case.request.target_true
    return [] if true is None else [(p, target) for p in prompts for target in (new, true)]


def _pairs_of(edit: FurtherEdit) -> list[tuple[str, str]]:
    """As `_pairs`, for one more edit: its prompt, then its paraphrases."""
    new, true = edit.request.target_new, edit.request.target_true
    prompts = (edit.request.text, *edit.paraphrases)
    return [] if true is None else [(p, target) for p in prompts for target in (new, true)]


def _further_pairs(case: Case) -> list[tuple[str, str]]:
    return [pair for each in case.further for pair in _pairs_of(each)]


def _contrasts(scored: Sequence[TargetScore]) -> list[Contrast]:
    """The scores of `_pairs` as contrasts of two."""
    logs = [score.log_probability for score in scored]
    return [Contrast(*pair) for pair in zip(logs[::2], logs[1::2], strict=True)]


def _probe_pairs(case: Case) -> list[Asked]:
    """Each spelling of each probe's answer: the group, the number of the probe, and the pair."""
    groups: dict[str, tuple[Probe, ...]] = {"relation_specificity": case.relations}
    groups |= {FOLLOWS + name: probes for name, probes in case.groups.items()}
    return [
        (name, number, (probe.prompt, answer))
        for name, probes in groups.items()
        for number, probe in enumerate(probes)
        for answer in (probe.answer, *probe.aliases)
    ]


def _share_right(asked: Sequence[Asked], correct: Sequence[bool]) -> Scores:
    """For each group, the share of probes with one spelling whose tokens are all top-1."""
    right: dict[str, dict[int, bool]] = {}
    for (name, number, _), hit in zip(asked, correct, strict=True):
        of_group = right.setdefault(name, {})
        of_group[number] = of_group.get(number, False) or hit
    return {name: mean([float(hit) for hit in hits.values()]) for name, hits in right.items()}


def _neighbours(lm: Lm, cases: Sequence[Case], under: RowEdits | None) -> list[Tensor | None]:
    """Log-probabilities of the next tokens after each case's neighbours, (neighbours, V)."""
    rows = _over_cases(
        [case.neighbours for case in cases],
        under,
        lambda flat, each: list(locality.next_log_probabilities(lm, flat, under=each)),
    )
    return [torch.stack(each) if each else torch.empty(0, len(lm.tokenizer)) for each in rows]


def _locality(
    lm: Lm, cases: Sequence[Case], before: Sequence[Tensor | None], under: RowEdits | None
) -> list[Scores]:
    """NS and NM with the edit's sentence before the prompt (CounterFact+), and KL on neighbours."""
    pairs = [
        _pairs(case, [locality.with_edit(case.request, prompt, lm) for prompt in case.neighbours])
        for case in cases
    ]
    scored = _over_cases(pairs, under, lambda flat, each: score_targets(lm, flat, under=each))
    found: list[Scores] = []
    for each, was, now in zip(scored, before, _neighbours(lm, cases, under), strict=True):
        contrasts = _contrasts(each)
        assert was is not None
        assert now is not None
        found.append(
            {
                "NS_plus": mean([counterfact.specificity(c) for c in contrasts]),
                "NM_plus": mean([counterfact.specificity_magnitude(c) for c in contrasts]),
                "neighbour_KL": locality.mean_kl(was, now),
            }
        )
    return found


def _generate(lm: Lm, cases: Sequence[Case], under: RowEdits | None) -> list[dict[str, str]]:
    """The greedy answers after the rewrite prompt and the paraphrases, by kind of prompt."""
    prompts = [[case.request.text, *case.paraphrases] for case in cases]
    written = _over_cases(
        prompts, under, lambda flat, each: greedy(lm, flat, NEW_TOKENS, under=each)
    )
    kinds = [["rewrite", *(f"paraphrase {n}" for n in range(1, len(p)))] for p in prompts]
    return [dict(zip(*pair, strict=True)) for pair in zip(kinds, written, strict=True)]


def _score_generation(
    lm: Lm, cases: Sequence[Case], written: Sequence[Mapping[str, str]], under: RowEdits | None
) -> list[Scores]:
    targets = [case.request.target_new for case in cases]
    pairs = [(case.request.text, target) for case, target in zip(cases, targets, strict=True)]
    found: list[Scores] = []
    for target, each, scored in zip(
        targets, written, score_targets(lm, pairs, under=under), strict=True
    ):
        holds = generated_text.contains(each["rewrite"], target)
        found.append(
            {
                "exact_match": generated_text.exact_match(each["rewrite"], target),
                "contains": holds,
                "teacher_forced": float(scored.correct),
                "generation_gap": float(scored.correct) - holds,
            }
        )
    return found


def _score_texts(
    lm: Lm,
    cases: Sequence[Case],
    own: Sequence[list[str]],
    references: References | None,
    under: RowEdits | None,
) -> list[Scores]:
    """GE of the sampled texts; RS and essence if the case has reference texts."""
    found: list[Scores] = [{"GE": generated_text.generation_entropy(each)} for each in own]
    for number, case in enumerate(cases if references else ()):
        assert references is not None
        same, subjects = references.of(case)
        both = own[number] and same
        alone = under and RowEdits(under.edits, [number])
        found[number] |= {
            "RS": generated_text.reference_score(own[number], same, references.tfidf)
            if both
            else None,
            "essence": generated_text.essence_perplexity(lm, subjects, under=alone),
        }
    return found
