"""Free answers as papers on real use score them: prompt forms, stop rules, exact match, ceilings.

Source: Yang et al. 2025 (arXiv 2502.11177), whose WILD protocol is `strict` here: greedy, at most
50 tokens, cut at the first full stop or line end. `sentence` cuts at a real end of a sentence.
"""

from __future__ import annotations

import re
import string
import unicodedata

TOKENS = 50
"""The most tokens of an answer."""
QUESTION, QA, CHAT = "question", "qa", "chat"
FORMS = (QUESTION, QA, CHAT)
"""The prompt alone; an instruction with question and answer; the tokenizer's chat template."""
INSTRUCTION = "Please answer the question:\n\nQ: {}\nA:"
STRICT, SENTENCE = "strict", "sentence"
ARTICLES = frozenset({"a", "an", "the"})
ABBREVIATIONS = frozenset(
    {"mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "gen", "col", "lt", "capt", "rev", "hon"}
    | {"no", "vs", "etc", "inc", "ltd", "co", "corp", "mt", "ft", "op", "vol", "e.g", "i.e"}
    | {"approx", "dept", "est", "fig"}
)
"""Words whose full stop ends no sentence, in lower case and without their last full stop."""
STOP = re.compile("[.!?]+[\"')\\]\u201d\u2019]*(?=\\s|$)")


def cut_answer(text: str, rule: str) -> str:
    """*text* up to its end under *rule*: strict or sentence. The stop itself is left out."""
    line = text.split("\n", 1)[0]
    if rule == STRICT:
        return line.split(".", 1)[0]
    for match in STOP.finditer(line):
        if not _goes_on(line[: match.start()], match.group(), line[match.end() :]):
            return line[: match.start()]
    return line


def _goes_on(before: str, stop: str, after: str) -> bool:
    """Whether *stop* ends no sentence: after an initial, a short form, or before a small letter."""
    if not after.strip():
        return False
    word = before.rsplit(None, 1)[-1] if before.split() else ""
    if not stop.startswith("."):
        return after.lstrip()[:1].islower()
    return is_short_form(word) or after.lstrip()[:1].islower()


def is_short_form(word: str) -> bool:
    """Whether *word*, without its last full stop, is an initial or a known abbreviation."""
    initial = re.fullmatch(r"(\w\.)*\w", word) is not None and not word.isdigit()
    return initial or word.lower() in ABBREVIATIONS


def plain_words(text: str) -> list[str]:
    """The words of *text* in lower case, without punctuation and without a, an and the."""
    kept = "".join(sign for sign in text.lower() if not _is_punctuation(sign))
    return [word for word in kept.split() if word not in ARTICLES]


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def is_right(text: str, target: str, rule: str) -> float:
    """1 if *text*, cut under *rule*, has the plain words of *target*; else 0."""
    wanted = plain_words(target)
    return float(bool(wanted) and plain_words(cut_answer(text, rule)) == wanted)


def can_be_right(target: str, rule: str) -> float:
    """1 if *target* itself would be right under *rule*; the mean over a set is its ceiling."""
    return is_right(target, target, rule)


def answer_runs_on(text: str, target: str) -> float:
    """1 if *text* begins with the words of *target* and goes on; else 0."""
    words, wanted = plain_words(text), plain_words(target)
    return float(bool(wanted) and words[: len(wanted)] == wanted and len(words) > len(wanted))
