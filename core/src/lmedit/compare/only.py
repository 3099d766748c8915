"""Keep only the cases that the unedited model answers right, or wrong, or that nobody can judge.

Huang et al. 2024 (HalluEditBench, arXiv 2410.16251) edit only facts that the model gets wrong. A
model that knows the answer already shows nothing about an edit to that answer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from tqdm import tqdm

from lmedit.cases.records import Only
from lmedit.compare.asking import as_asked
from lmedit.compare.case_scores import NEW_TOKENS
from lmedit.errors import CasesError, LmeditError, UnknownNameError
from lmedit.metrics.generate import greedy
from lmedit.metrics.wild import plain_words
from lmedit.types import Case

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.cases import BrokenCase, CaseSet
    from lmedit.models import Lm

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        RIGHT: "the greedy answer of the unedited model begins with the true answer",
        WRONG: "it begins with other words",
        UNKNOWN: "the record names no true answer, or the model writes no word",
    }
)
"""The words of --only. They are disjoint, and each case has one."""
AT_ONCE = 64
"""How many cases are asked together."""


def word_of(answer: str, true: str | None) -> str:
    """The word of `MEANINGS` for the text *answer* of the model and the *true* answer.

    The words of both are compared in lower case, without punctuation and articles.
    """
    written, wanted = plain_words(answer), plain_words(true or "")
    if not written or not wanted:
        return UNKNOWN
    return RIGHT if written[: len(wanted)] == wanted else WRONG


def true_answer(case: Case) -> str | None:
    """The true answer of *case*, if its record names it."""
    return case.request.target_new if case.inserts_truth else case.request.target_true


def keep_only(
    lm: Lm, cases: CaseSet, word: str, limit: int | None = None, *, last: bool = False
) -> CaseSet:
    """The first *limit* of *cases* to which *word* of `MEANINGS` applies; with *last*, the last.

    *lm* must be unedited; it is asked as a comparison asks it. Broken records stay and count, so
    that no failure is hidden. Raises `CasesError` if no case is left.
    """
    if word not in MEANINGS:
        raise UnknownNameError("word of --only", word, MEANINGS)
    items = cases.items[::-1] if last else cases.items
    kept: list[Case | BrokenCase] = []
    dropped: Counter[str] = Counter()
    asked = 0
    with tqdm(total=len(items), disable=None, desc=f"only {word}", leave=False) as bar:
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            for item, found in zip(some, judge_cases(lm, replace(cases, items=some)), strict=True):
                if limit is not None and len(kept) == limit:
                    break
                asked += 1
                if found in {word, None}:
                    kept.append(item)
                else:
                    dropped[str(found)] += 1
            bar.update(len(some))
            if limit is not None and len(kept) == limit:
                break
    if all(not isinstance(item, Case) for item in kept):
        raise CasesError(
            f"--only {word} keeps none of the {asked} cases of {cases.name}; give another word or "
            "other --cases"
        )
    told = Only(word, len(kept), dict(sorted(dropped.items())), len(items) - asked)
    return replace(cases, items=tuple(kept[::-1] if last else kept), only=told)


def judge_cases(lm: Lm, cases: CaseSet) -> list[str | None]:
    """The word of each of *cases*; None for a broken record."""
    asked = as_asked(lm, cases).items
    prompts = [item.request.text for item in asked if isinstance(item, Case)]
    texts = iter(_answers(lm, prompts))
    return [
        word_of(next(texts), true_answer(item)) if isinstance(item, Case) else None
        for item in cases.items
    ]


def _answers(lm: Lm, prompts: Sequence[str]) -> list[str]:
    """The greedy answers to *prompts*; an empty one for a prompt that cannot be asked."""
    try:
        return greedy(lm, prompts, NEW_TOKENS)
    except LmeditError:  # one prompt may be too long
        if len(prompts) <= 1:
            return [""] * len(prompts)
        return [text for prompt in prompts for text in _answers(lm, [prompt])]


def protocol_of_only(word: str | None) -> dict[str, str]:
    """What --only *word* means, for the protocol of a run; empty without it."""
    if word is None:
        return {}
    how = f"greedy until end-of-text or {NEW_TOKENS} new tokens, after the rewrite prompt"
    return {"only": f"{word}: {MEANINGS[word]}; {how}; words without case, signs and articles"}
