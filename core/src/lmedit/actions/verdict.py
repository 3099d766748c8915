"""Decide whether an edit took: the probability of the target, and the model's own text."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from lmedit.metrics.generate import greedy
from lmedit.metrics.generated_text import contains
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.replay.unmerged import under_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.models import Lm
    from lmedit.replay.unmerged import UnmergedEdits
    from lmedit.types import Request

Verdict = Literal["took", "took only under teacher forcing", "did not take"]

WAYS = "try another layer (lmedit tune) or method"
"""The remedy for a method without a remedy of its own."""
WRITES = 40
"""The model writes at most this many tokens, or more for a longer target."""
SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b[A-Z][a-z])[.!?][\"'\u201d\u2019)]*(?=\s|$)|[\u3002\uff01\uff1f]|\n"
)
"""The end of a sentence or a line; not after initials and abbreviations such as "St."."""


@dataclass(frozen=True)
class TargetChance:
    """The probability of a target after a prompt, teacher-forced."""

    joint: float
    """P(target | prompt): the product over its tokens."""
    per_token: float
    """The geometric mean of the tokens' probabilities, joint ** (1 / tokens)."""
    tokens: int
    correct: bool
    """Whether each token is top-1, given the prompt and the target's own earlier tokens."""


def chances_of(
    lm: Lm, prompt: str, targets: Sequence[str], edits: UnmergedEdits | None = None
) -> list[TargetChance]:
    """The probability of each of *targets* after *prompt*; with *edits*, under its one edit."""
    found = []
    under = under_one(edits, len(targets))
    scores = score_targets(lm, [(prompt, target) for target in targets], under=under)
    for target, score in zip(targets, scores, strict=True):
        n = len(lm.with_target(prompt, target)[1])
        mean = score.log_probability
        found.append(TargetChance(math.exp(n * mean), math.exp(mean), n, score.correct))
    return found


def continue_greedily(
    lm: Lm, request: Request, target_tokens: int, edits: UnmergedEdits | None = None
) -> str:
    """The greedy continuation of the prompt of *request* by *lm*, at most `WRITES` tokens.

    It ends where `sentence_of` and `verdict_of` are sure of their results. With *edits*, *lm*
    writes under its one edit.
    """
    most = max(WRITES, target_tokens + 5)
    sure = partial(_is_decided, request=request)
    (text,) = greedy(lm, [request.text], most, under=under_one(edits, 1), enough=sure)
    return text


def _is_decided(text: str, request: Request) -> bool:
    """Whether more text changes neither `sentence_of` nor `begins_with`.

    The first sentence must end before the last sign. `begins_with` must see the signs that follow
    the target.
    """
    if len(" ".join(text.split())) < len(request.target_new) + SIGNS_SEEN:
        return False
    end = _end_of_sentence(text.lstrip(), request)
    return end is not None and end < len(text.lstrip())


SIGNS_SEEN = 3
"""`begins_with` looks at two signs behind the target; the last sign of a text may still change."""


def verdict_of(text: str, target: str, chance: TargetChance) -> Verdict:
    """Decide whether the model gives *target*, from its *text* and the target's *chance*.

    "took": the text of greedy decoding begins with the whole target, at a word edge. "took only
    under teacher forcing": each target token is top-1 after the target's earlier tokens, but the
    text does not begin with the target. Then the model continues to another word (Rome to Romeo).
    Or the prompt alone has other tokens than the prompt with the target. "did not take": all other
    cases.
    """
    if begins_with(text, target):
        return "took"
    return "took only under teacher forcing" if chance.correct else "did not take"


def begins_with(text: str, target: str) -> bool:
    """Whether *text* begins with *target*, without blanks in front, up to a word edge."""
    text, target = " ".join(text.split()), " ".join(target.split())
    rest = text[len(target) :]
    if not text.startswith(target):
        return False
    if target[-1].isdigit() and re.match(r"[.,]?\d", rest):
        return False
    return not (_in_word(target[-1]) and _in_word(rest[:1]))


def _in_word(sign: str) -> bool:
    """Whether *sign* joins its neighbours to one word: digits, and scripts with capitals."""
    return sign.isdigit() or sign.lower() != sign.upper()


def sentence_of(text: str, request: Request) -> str:
    """*text* up to the end of its first sentence; a target at its start is not cut."""
    bare = text.lstrip()
    return bare[: _end_of_sentence(bare, request)].rstrip()


def _end_of_sentence(bare: str, request: Request) -> int | None:
    """Where the first sentence of *bare* ends; None if it does not end."""
    target = request.target_new.strip()
    start = len(target) if bare.startswith(target) else 0
    end = SENTENCE_END.search(bare, start)
    return end and end.end()


def why_not(verdict: Verdict, sentence: str, request: Request, ways: str = WAYS) -> str | None:
    """The reason to refuse an edit with this *verdict*, with the model's text; None if it took."""
    if verdict == "took":
        return None
    target = request.target_new.strip()
    line = f"the edit {verdict}: after {request.text!r} the model writes {sentence!r}"
    if verdict == "did not take" and contains(sentence, target):
        return f"{line}, and {target!r} comes later; give --target as the model begins its answer"
    return f"{line}, not {target!r}; {ways}"


LONG, MOST = 8, 0.8
"""From this number of words, a text repeats one word if this share of them is the same."""


def tell_repetition(before: str, after: str) -> list[str]:
    """A line for the user if *after*, the edited model's text, repeats one word; else none.

    A model that did so *before* the edit is not told of.
    """
    word = _find_main_word(after)
    if word is None or _find_main_word(before) is not None:
        return []
    return [f"the edited model repeats {word!r}; look at its text before you use the edit"]


def _find_main_word(text: str) -> str | None:
    """The word that makes most of *text*, if there is one."""
    words = text.split()
    (word, count), *_ = Counter(words).most_common(1) or [("", 0)]
    return word if len(words) >= LONG and count >= MOST * len(words) else None
