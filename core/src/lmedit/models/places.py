"""Find the place of a subject in a prompt that is written out in full."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

ALIKE = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u02bc": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2010": "-",
        "\u2011": "-",
        "\u00a0": " ",
    }
)
"""Characters with several forms: quotes, hyphens, the no-break space."""


@dataclass(frozen=True)
class Placed:
    """A prompt with ``{}`` for its subject, and the subject in the prompt's spelling."""

    template: str
    subject: str
    remark: str | None = None
    """One line about the choice, if the prompt does not contain the subject once and exactly."""


def place_subject(prompt: str, subject: str) -> Placed | None:
    """Find *subject* in *prompt*; None if the prompt does not contain it.

    Exact places come first. Then case, Unicode form (NFC or NFD), and the form of quotes and
    hyphens do not matter. Places at word edges come before places inside words. If several are
    left, the last one is used, because it is nearest to the answer.
    """
    spans = _at_edges(prompt, _spans(prompt, subject, exact=True))
    spans = spans or _at_edges(prompt, _spans(prompt, subject, exact=False))
    if not spans or not subject.strip():
        return None
    start, end = spans[-1]
    found = prompt[start:end]
    template = f"{prompt[:start]}{{}}{prompt[end:]}"
    remarks = []
    if len(spans) > 1:
        remarks.append(f"stands {len(spans)} times in the prompt; the last place is taken")
    if found != subject:
        remarks.append(f"is spelled {found!r} in the prompt; {_form(found, subject)} is taken")
    remark = f"the subject {subject!r} {', and it '.join(remarks)}" if remarks else None
    return Placed(template, found, remark)


def _form(found: str, subject: str) -> str:
    """The spelling that is used: *found*, or a description if both spellings look equal."""
    same = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", subject)
    return "the prompt's Unicode form" if same else repr(found)


def _spans(prompt: str, subject: str, *, exact: bool) -> list[tuple[int, int]]:
    """The places [start, end) of *subject* in *prompt*, without overlaps."""
    signs = [(sign, i) for i, each in enumerate(prompt) for sign in _fold(each, exact=exact)]
    hay = "".join(sign for sign, _ in signs)
    needle = "".join(_fold(each, exact=exact) for each in subject)
    spans, at = [], hay.find(needle) if needle else -1
    while at >= 0:
        end = at + len(needle)
        whole = end == len(hay) or not unicodedata.combining(hay[end])
        if whole and (at == 0 or signs[at - 1][1] < signs[at][1]):
            spans.append((signs[at][1], signs[end - 1][1] + 1))
        at = hay.find(needle, end)
    return spans


def _fold(sign: str, *, exact: bool) -> str:
    """A character for comparison: itself, or decomposed, without case, in its plain form."""
    if exact:
        return sign
    return unicodedata.normalize("NFD", sign.translate(ALIKE).casefold())


def _at_edges(prompt: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The *spans* that begin and end at word edges, if there are any; else all of them."""
    edged = [(a, b) for a, b in spans if not _glued(prompt, a) and not _glued(prompt, b)]
    return edged or spans


def _glued(text: str, at: int) -> bool:
    """Whether the characters before and after the place *at* belong to one word."""
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()
