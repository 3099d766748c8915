"""Retrieval in place of editing: put the k edited facts that fit a prompt best before it.

The facts are ranked by BM25 (Robertson and Zaragoza 2009) over their prompts and subjects. No
weight changes, and no model is needed to rank.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from lmedit.compare.candidates import RETRIEVE, Candidate, put_before
from lmedit.metrics.locality import with_edit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit.models import Lm
    from lmedit.types import Case

K1, B = 1.5, 0.75
"""The usual constants of BM25: how fast a word saturates, and the weight of the length."""
FACTS = 3
"""How many facts stand in front of a prompt."""


def words_of(text: str) -> list[str]:
    """The words of *text* in small letters."""
    return re.findall(r"\w+", text.lower())


class Ranking:
    """BM25 over some texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Count the words of *texts*."""
        self.counts = [Counter(words_of(text)) for text in texts]
        self.lengths = [sum(each.values()) for each in self.counts]
        self.mean = sum(self.lengths) / max(1, len(self.lengths))
        holding = Counter(word for each in self.counts for word in each)
        N = len(texts)
        self.weights = {w: math.log(1 + (N - n + 0.5) / (n + 0.5)) for w, n in holding.items()}

    def best(self, query: str, k: int) -> list[int]:
        """The numbers of at most *k* texts that share a word with *query*, the best first."""
        asked = [word for word in dict.fromkeys(words_of(query)) if word in self.weights]
        scores = [self._score(asked, number) for number in range(len(self.counts))]
        order = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
        return [number for number in order[:k] if scores[number] > 0]

    def _score(self, asked: Sequence[str], number: int) -> float:
        counts = self.counts[number]
        length = K1 * (1 - B + B * self.lengths[number] / self.mean)
        return sum(
            self.weights[word] * counts[word] * (K1 + 1) / (counts[word] + length) for word in asked
        )


def retrieve_among(
    cases: Sequence[Case], lm: Lm | None = None, k: int = FACTS
) -> Callable[[Case], Case]:
    """A function that puts the *k* best facts of *cases* before each prompt of a case.

    The best fact stands last, next to the prompt. A prompt that shares no word with any fact stays
    as it is.
    """
    requests = [request for case in cases for request in case.requests]
    ranking = Ranking([request.text for request in requests])

    def front(prompt: str) -> str:
        bare = lm.chat.bare(prompt) if lm is not None and lm.chat else prompt
        found = reversed(ranking.best(bare, k))
        return "".join(with_edit(requests[number], "", lm) for number in found)

    return lambda case: put_before(case, front, lm)


def retrieval(lm: Lm) -> Candidate:
    """The baseline: it knows all edited facts, and the model stays as it is."""
    return Candidate(RETRIEVE, asks=lambda cases: retrieve_among(cases, lm))
