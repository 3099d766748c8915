"""Questions that critics of model editing ask: negated, true or false, and reversed.

Sources: "Is Model Editing Built on Sand?" (arXiv 2510.00625) for negation and fact-check; Berglund
et al. 2023 (arXiv 2309.12288) for the reversal. The forms are fixed here, in English. A text whose
letters are mostly of another script has no such questions.
"""

from __future__ import annotations

import re
import unicodedata
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmedit.metrics.locality import stop_after
from lmedit.metrics.wild import is_short_form

if TYPE_CHECKING:
    from collections.abc import Mapping

NEGATIONS = ("It is not true that {}", "It is false that {}", "It is not the case that {}")
"""The forms of the negated question; ``{}`` is the prompt."""
CHECK = "True or false: {}. Answer:"
"""The form of the fact-check; ``{}`` is the fact as a sentence."""
YES, NO = "True", "False"
"""The two answers of the fact-check."""
REVERSED: Mapping[str, str] = MappingProxyType(
    {
        "P17": "A place in the country of {} is",
        "P19": "A person who was born in {} is",
        "P20": "A person who died in {} is",
        "P27": "A citizen of {} is",
        "P30": "A place on the continent of {} is",
        "P31": "An example of the kind {} is",
        "P36": "{} is the capital of",
        "P37": "A place where people speak {} is",
        "P38": "A country that pays with the {} is",
        "P39": "A person who had the position of {} is",
        "P101": "A person whose field is {} is",
        "P103": "A person whose native language is {} is",
        "P106": "A person whose profession is {} is",
        "P108": "A person who works for {} is",
        "P127": "A thing that belongs to {} is",
        "P131": "A place in {} is",
        "P136": "An artist of the genre {} is",
        "P140": "A follower of {} is",
        "P159": "A company with its headquarters in {} is",
        "P176": "A product that is made by {} is",
        "P178": "A product that was developed by {} is",
        "P190": "The twin city of {} is",
        "P264": "An artist of the label {} is",
        "P276": "A thing that stands in {} is",
        "P279": "A kind of {} is",
        "P361": "A part of {} is",
        "P364": "A film in the language {} is",
        "P407": "A work in the language {} is",
        "P413": "A player in the position of {} is",
        "P449": "A series that was first shown on {} is",
        "P452": "A company in the industry of {} is",
        "P463": "A member of {} is",
        "P495": "A thing that comes from {} is",
        "P641": "A person who plays {} is",
        "P740": "A group that was founded in {} is",
        "P937": "A person who worked in {} is",
        "P1303": "A person who plays the {} is",
        "P1376": "The capital of {} is",
        "P1412": "A person who speaks {} is",
    }
)
"""The reverse question of known relations (Wikidata); ``{}`` is the new answer."""
FUNCTION_WORDS = frozenset(
    "the a an this that these those in on at of from by for to people residents".split()  # noqa: SIM905
)
"""First words that lose their capital letter inside a sentence."""
REVERSE_NAMES = ("revers", "invers")
"""The group of a record holds reverse questions if its name contains one of these."""
_END = re.compile(r"[.!?]+[\"')\]\u201d\u2019]*\s+|\u3002\s*|\n+")


def split_front(text: str) -> tuple[str, str]:
    """*text* as the sentences before the last one, and the last one, which may be open.

    A full stop after an initial or a short form ends no sentence.
    """
    start, bare = 0, text.rstrip()
    for end in _END.finditer(bare):
        words = bare[start : end.start()].rsplit(None, 1)
        if end.group().startswith(".") and words and is_short_form(words[-1]):
            continue
        start = end.end()
    return bare[:start], bare[start:]


def is_english_script(text: str) -> bool:
    """Whether at least half of the letters of *text* are Latin."""
    letters = [sign for sign in text if sign.isalpha()]
    latin = sum(unicodedata.name(sign, "").startswith("LATIN") for sign in letters)
    return 2 * latin >= len(letters) > 0


def negated_prompts(prompt: str, subject: str | None) -> list[str]:
    """*prompt* under each of `NEGATIONS`; empty if it is a question or of another script.

    Only the last sentence is negated. Its first word loses its capital if it is a function word
    and does not begin the *subject*.
    """
    front, last = split_front(prompt)
    if "?" in last or last.endswith(":") or not is_english_script(last):
        return []
    first, blank, rest = last.partition(" ")
    if first.lower() in FUNCTION_WORDS and not (subject and last.startswith(subject)):
        last = f"{first.lower()}{blank}{rest}"
    return [front + form.format(last) for form in NEGATIONS]


def check_prompt(prompt: str, answer: str) -> str | None:
    """The fact-check of *prompt* with *answer*, which begins with the joint.

    Sentences before the last one stay in front. None if the prompt is of another script.
    """
    front, last = split_front(prompt)
    return front + CHECK.format(last + answer) if is_english_script(last) else None


def stated_before(prompt: str, answer: str) -> str:
    """*prompt* with its last sentence and *answer*, which begins with the joint, stated before."""
    front, last = split_front(prompt)
    return f"{front}{last}{answer}{stop_after(answer)}{last}"


def reverse_prompt(relation: str | None, target: str, prompt: str) -> str | None:
    """The reverse question of *target* by the form of *relation*; None for other relations.

    Sentences of *prompt* before its last one stay in front.
    """
    form = REVERSED.get(relation or "")
    return None if form is None else split_front(prompt)[0] + form.format(target)


def is_reverse_group(name: str) -> bool:
    """Whether a record's group of probes, by its *name*, holds reverse questions."""
    return any(part in name.lower() for part in REVERSE_NAMES)
