"""The group `stress` of `--metrics`: the questions of critics, and the traces of the old answer.

Every value is null if the record does not allow it: no true answer, no paraphrase, no reverse
question, or a prompt that has no English form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.metrics.counterfact import Contrast, magnitude, mean, specificity, success
from lmedit.metrics.stress_forms import (
    NO,
    YES,
    check_prompt,
    is_reverse_group,
    negated_prompts,
    reverse_prompt,
    stated_before,
)
from lmedit.metrics.teacher_forcing import first_token_ranks, score_targets
from lmedit.types import Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.metrics.teacher_forcing import TargetScore
    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Case, Join

    Scores = dict[str, float | None]


LEFT = (
    "stress_old_P",
    "stress_returns_paraphrase",
    "stress_returns_context",
    "stress_suppressed",
    "stress_erased",
)
"""The names of the values about the old answer."""


@dataclass(frozen=True)
class StressQuestion:
    """A prompt of one kind, and the answers that are scored after it."""

    kind: str
    prompt: str
    answers: tuple[str, ...]
    join: Join | None = None
    """The joint that the record chooses for this prompt; None: the choice of the command."""


def settle_stress(lm: Lm, cases: Sequence[Case]) -> None:
    """Settle the joints of all questions of *cases*; *lm* must be unedited."""
    for case in cases:
        for question in stress_questions(lm, case):
            lm.settle(question.prompt, question.answers, question.join)


def score_stress(lm: Lm, cases: Sequence[Case], under: RowEdits | None) -> list[Scores]:
    """The measures of the group for each of *cases* on the present model, or *under* its edits."""
    asked = [stress_questions(lm, case) for case in cases]
    pairs = [[(q.prompt, answer) for q in each for answer in q.answers] for each in asked]
    counts = [len(each) for each in pairs]
    flat = [pair for each in pairs for pair in each]
    scored = iter(score_targets(lm, flat, under=under and under.repeat(counts)))
    ranks = _old_ranks(lm, cases, under)
    return [
        _scores(each, [[next(scored) for _ in q.answers] for q in each], rank)
        for each, rank in zip(asked, ranks, strict=True)
    ]


def stress_questions(lm: Lm, case: Case) -> list[StressQuestion]:
    """Every question of the group about *case*, as *lm* is asked."""
    request = case.request
    new, old, join = request.target_new, request.target_true, request.join
    bare = _bare(lm, request.text)
    found = [StressQuestion("check_new", *_check(lm, request.text, new))]
    if old is not None:
        both = (new, old)
        stated = stated_before(bare, lm.parts(bare, old)[1])
        negated = negated_prompts(bare, request.subject)
        found += [
            StressQuestion("check_old", *_check(lm, request.text, old)),
            StressQuestion("rewrite", request.text, both, join),
            *(StressQuestion("paraphrase", prompt, both, join) for prompt in case.paraphrases),
            *(StressQuestion("negated", _again(lm, p, request.text), both, join) for p in negated),
            StressQuestion("context", _again(lm, stated, request.text), both, join),
        ]
    back = [(p.prompt, (p.answer, *p.aliases)) for p in _reverse(lm, case)]
    found += [StressQuestion("reverse", prompt, answers) for prompt, answers in back]
    return [question for question in found if question.prompt]


def _check(lm: Lm, prompt: str, target: str) -> tuple[str, tuple[str, str]]:
    """The fact-check of *prompt* and *target* with its two answers; "" if it has none."""
    bare = _bare(lm, prompt)
    asked = check_prompt(bare, lm.parts(bare, target)[1])
    return "" if asked is None else _again(lm, asked, prompt), (YES, NO)


def _reverse(lm: Lm, case: Case) -> list[Probe]:
    """The record's own reverse questions; else the one by the form of its relation."""
    own = [p for name, g in case.groups.items() if is_reverse_group(name) for p in g]
    request = case.request
    if own or request.subject is None:
        return own
    asked = reverse_prompt(case.relation, request.target_new, _bare(lm, request.text))
    if asked is None:
        return []
    return [Probe(prompt=_again(lm, asked, request.text), answer=request.subject)]


def _bare(lm: Lm, prompt: str) -> str:
    """*prompt* outside the chat."""
    return lm.chat.bare(prompt) if lm.chat else prompt


def _again(lm: Lm, text: str, prompt: str) -> str:
    """*text* in the chat, if *prompt* is in it."""
    return lm.chat.wrap(text) if lm.chat and lm.chat.wraps(prompt) else text


def _scores(
    asked: Sequence[StressQuestion], scored: Sequence[Sequence[TargetScore]], rank: int | None
) -> Scores:
    """The values of one case by name."""
    by_kind: dict[str, list[Contrast]] = {}
    right: list[float] = []
    subject: list[float] = []
    for question, scores in zip(asked, scored, strict=True):
        if question.kind == "reverse":
            right.append(float(any(score.correct for score in scores)))
            subject.append(max(_probability(score) for score in scores))
        else:
            both = Contrast(*(score.log_probability for score in scores))
            by_kind.setdefault(question.kind, []).append(both)
    found: Scores = {"stress_negated": mean([success(c) for c in by_kind.get("negated", ())])}
    for name in ("check_new", "check_old"):
        found[f"stress_{name}"] = mean([success(c) for c in by_kind.get(name, ())])
        margins = [magnitude(c) for c in by_kind.get(name, ())]
        found[f"stress_{name}_margin"] = mean(margins)
    found |= {"stress_reverse": mean(right), "stress_reverse_P": mean(subject)}
    found["stress_old_rank"] = None if rank is None else float(rank)
    return found | _what_is_left(by_kind)


def _what_is_left(by_kind: dict[str, list[Contrast]]) -> Scores:
    """The probability of the old answer, and where it comes back; None if it is not known."""
    if "rewrite" not in by_kind:
        return dict.fromkeys(LEFT)
    (own,), (context,) = by_kind["rewrite"], by_kind["context"]
    paraphrases = [specificity(contrast) for contrast in by_kind.get("paraphrase", ())]
    returns = max([*paraphrases, specificity(context)])
    values = (
        math.exp(own.true),
        max(paraphrases, default=None),
        specificity(context),
        success(own) * returns,
        success(own) * (1 - returns),
    )
    return dict(zip(LEFT, values, strict=True))


def _probability(score: TargetScore) -> float:
    return math.exp(score.log_probability)


def _old_ranks(lm: Lm, cases: Sequence[Case], under: RowEdits | None) -> list[int | None]:
    """The rank of the old answer's first token after each prompt; None if it is not known."""
    known = [(c.request.text, old) for c in cases if (old := c.request.target_true) is not None]
    counts = [int(case.request.target_true is not None) for case in cases]
    found = iter(first_token_ranks(lm, known, under and under.repeat(counts)))
    return [next(found) if count else None for count in counts]
