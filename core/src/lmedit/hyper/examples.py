"""Training examples of a hypernetwork: the edit, its paraphrases, and unrelated texts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.errors import NotPreparedError
from lmedit.metrics.contamination import fingerprint
from lmedit.models.joints import settle_case

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmedit.models import Lm
    from lmedit.types import Case

Ids = tuple[int, ...]
Row = tuple[Ids, Ids]
"""Ids of a prompt, and ids of the text that follows it."""
APART, FRONTED = 4, 3
"""Largest number of unrelated texts per case: alone, and with a text in front."""


@dataclass(frozen=True)
class Example:
    """One case as token ids: the edit, other prompts for it, and texts that must not change.

    `inner` is the request's prompt with the new answer; the edit is computed from it. `outer` holds
    the same prompt and its paraphrases, with the same answer. `apart` holds unrelated texts for
    each of them.
    """

    inner: Row
    outer: tuple[Row, ...]
    apart: tuple[tuple[Ids, ...], ...]


@dataclass(frozen=True)
class Examples:
    """Examples for training and for validation, and the fingerprints of all their facts."""

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    fingerprints: tuple[int, ...]


VALIDATION = 200
"""Number of examples for validation; a tenth of all examples if that is less."""


def examples_from(lm: Lm, cases: Iterable[Case] | None, limit: int, seed: int) -> Examples:
    """Draw at most *limit* of the *cases*, and set a part of them aside for validation.

    All cases of one fact are on one side. Raises `NotPreparedError` if there are no cases, or fewer
    than 20 usable ones.
    """
    if cases is None:
        raise NotPreparedError(
            "editors are trained on cases; give --corpus counterfact, zsre or a file of cases"
        )
    usable = [case for case in cases if apart_texts(case)]
    random.Random(seed).shuffle(usable)  # noqa: S311  (no secret)
    usable = usable[:limit]
    if len(usable) < 20:
        raise NotPreparedError(
            f"{len(usable)} cases with neighbours to train on are too few; name more with --corpus"
        )
    facts = [fingerprint(case.request) for case in usable]
    cases_of = Counter(facts)  # in the order of the first case of each
    wanted = min(VALIDATION, len(usable) // 10)
    held: set[int] = set()
    for fact in reversed(cases_of):
        if wanted <= 0:
            break
        held.add(fact)
        wanted -= cases_of[fact]
    sides: dict[bool, list[Example]] = {True: [], False: []}
    for fact, case in zip(facts, usable, strict=True):
        sides[fact in held].append(example_of(lm, case))
    return Examples(tuple(sides[False]), tuple(sides[True]), tuple(sorted(cases_of)))


def apart_texts(case: Case, lm: Lm | None = None) -> list[str]:
    """Texts that an edit must not change: neighbours and other facts, with their answers.

    *lm* tells the joint of prompt and answer; without it, the joint is a blank.
    """

    def whole(prompt: str, answer: str) -> str:
        return "".join(lm.parts(prompt, answer)) if lm else f"{prompt} {answer}"

    true = case.request.target_true
    near = [whole(prompt, true) for prompt in case.neighbours] if true else []
    other = [whole(probe.prompt, probe.answer) for probe in (*case.relations, *case.locality)]
    return [*near[:2], *other[:1], *near[2:], *other[1:]][:APART]


def front_of(text: str, subject: str | None) -> str:
    """The sentences of *text* before the one with *subject*; empty if there are none."""
    before = text[: max(0, text.find(subject))] if subject else ""
    end = max(before.rfind(mark) for mark in ".!?\n")
    return before[: end + 1]


def example_of(lm: Lm, case: Case) -> Example:
    """The token ids of *case*, asked through the chat of *lm* if it has one.

    The text in front of a paraphrase also stands in front of its unrelated texts. In CounterFact
    paraphrases have a sentence in front and neighbours have none; a network could otherwise tell
    them apart by that sentence.
    """
    case = lm.chat.case(case) if lm.chat else case
    settle_case(lm, case)
    new, texts = case.request.target_new, apart_texts(case, lm)
    asked = (case.request.text, *case.paraphrases)
    apart = []
    for prompt in asked:
        front = front_of(lm.chat.bare(prompt) if lm.chat else prompt, case.request.subject)
        fronted = [lm.behind(f"{front} ", text) for text in texts[:FRONTED]] if front else texts
        apart.append(tuple(tuple(lm.encode(text)) for text in fronted))
    return Example(
        row_of(lm, case.request.text, new),
        tuple(row_of(lm, prompt, new) for prompt in asked),
        tuple(apart),
    )


def row_of(lm: Lm, prompt: str, target: str) -> Row:
    """Ids of a filled *prompt*, and ids of the joint and *target* after it."""
    before, after = lm.with_target(prompt, target)
    return tuple(before), tuple(after)
