"""Propose the subject of a prompt: the words whose disturbance reduces P(answer) most.

As in causal tracing (Meng et al. 2022, section 2.1), noise is added to the embeddings of a span of
words. Then the probability of the answer is computed again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.errors import SubjectNotFoundError
from lmedit.trace import changed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.models import Lm

SIGMAS = 3.0
"""The noise's standard deviation, in standard deviations of the embedding table's entries."""
SEEDS = 4
"""How many noise samples are drawn for each span."""
SPANS = 24
"""How many spans are tried at most."""
ROWS = 16
"""How many rows one forward pass has."""
NAMES_FIRST = 0.25
"""A name wins if its drop is at least this share of the largest drop."""
RUNNERS_UP = 3
_SMALL = "of the de la le du da von van der den di al and for"
_FUNCTION = """
a an the this that these those and or but if of in on at by to from for with without about as is
are was were be been being am do does did has have had can could will would shall should may might
must not no what who whom whose which where when why how it its he him his she her they them their
we our you your i my me there here also known called located s
"""
JOINERS = frozenset(_SMALL.split())
"""Words without capitals that occur inside names."""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""English words that no subject begins or ends with."""
WORD = re.compile(r"\w+(?:[-.'\u2019](?!s\b)\w+)*")
"""A word; a possessive "'s" is not part of it."""
BREAK = re.compile(r"[,;:!?()\"\n]")
"""Signs that separate two words, so that they do not belong to one subject."""


@dataclass(frozen=True)
class Span:
    """The characters [start, end) of a prompt, and whether they are a name."""

    start: int
    end: int
    name: bool


@dataclass(frozen=True)
class Proposal:
    """A span as the subject, and the drop of P(answer) under noise, mean over the samples."""

    subject: str
    span: Span
    drop: float


def spans_of(prompt: str) -> list[Span]:
    """The spans of *prompt* that can be its subject, names first; at most `SPANS`.

    Names are sequences of capitalised words, with small words such as "of" inside. A name counts
    also without its article. Other spans are sequences of words that are not function words.
    """
    names, others = _runs(prompt, capital=True), _runs(prompt, capital=False)
    found = {(a, b): Span(a, b, name=True) for a, b in names}
    for a, b in others:
        found.setdefault((a, b), Span(a, b, name=False))
    return list(found.values())[:SPANS]


def _runs(prompt: str, *, capital: bool) -> list[tuple[int, int]]:
    """Sequences of words, as characters: names, or all words that are not function words."""
    words = [(m.start(), m.end(), m.group()) for m in WORD.finditer(prompt)]
    found: list[tuple[int, int]] = []
    for first, (start, _, word) in enumerate(words):
        article = capital and word in {"The", "A", "An"}
        if not article and not _content(word, capital=capital):
            continue
        end = start
        for start_, end_, last in words[first:]:
            if BREAK.search(prompt[end:start_]):
                break
            end = end_
            inside = (capital and last in JOINERS) or (article and start_ == start)
            if not inside and not _content(last, capital=capital):
                break
            if not inside:
                found.append((start, end_))
    # The longest run from each word comes first; parts of it follow.
    return sorted(found, key=lambda run: (run[0], -run[1]))


def _content(word: str, *, capital: bool) -> bool:
    """Whether *word* can begin or end a subject; a word of a name has a capital or a digit."""
    named = any(sign.isupper() or sign.isdigit() for sign in word)
    return word.lower() not in FUNCTION_WORDS and (named or not capital)


@torch.no_grad()
def proposals(lm: Lm, prompt: str, answer: str | None = None) -> list[Proposal]:
    """The spans of *prompt*, sorted by how much noise on them reduces P(answer).

    P(answer) is the probability of one token: the first of *answer*, or the model's top token.
    Noise is drawn from N(0, (3 sigma)^2); sigma is the deviation of the embedding table. A name
    whose drop is at least a quarter of the largest drop comes before other spans. A whole name
    comes before its parts if their drops are about equal.
    """
    from lmedit.models.tokens import encode

    text = lm.chat.wrap(prompt) if lm.chat else prompt
    shift = len(lm.head)
    encoded = encode(lm.tokenizer, text, lm.head)
    token = None if answer is None else lm.with_target(text, answer)[1][0]
    clean = lm.next_probabilities(text)
    token = int(clean.argmax()) if token is None else token
    spans = spans_of(prompt)
    touched = [
        [
            i
            for i, (a, b) in enumerate(encoded.offsets)
            if a < span.end + shift and b > span.start + shift
        ]
        for span in spans
    ]
    rows = [(n, seed) for n, places in enumerate(touched) if places for seed in range(SEEDS)]
    drops: dict[int, list[float]] = {}
    for at in range(0, len(rows), ROWS):
        part = rows[at : at + ROWS]
        disturbed = _disturb_and_run(
            lm, encoded.ids, [(touched[n], seed) for n, seed in part], token
        )
        for (n, _), p in zip(part, disturbed, strict=True):
            drops.setdefault(n, []).append(float(clean[token]) - p)
    found = [
        Proposal(prompt[spans[n].start : spans[n].end], spans[n], sum(each) / len(each))
        for n, each in drops.items()
    ]
    return _rank(found)


def _disturb_and_run(
    lm: Lm, ids: Sequence[int], rows: Sequence[tuple[Sequence[int], int]], token: int
) -> list[float]:
    """P(*token*) after *ids*, for each of *rows*: places to disturb, and the seed of the noise."""
    table = lm.model.get_input_embeddings()
    width = lm.embeddings("input").shape[1]
    deviation = SIGMAS * float(lm.embeddings("input").float().std())
    noise = torch.zeros(len(rows), len(ids), width)
    for row, (places, seed) in enumerate(rows):
        drawn = torch.randn(len(places), width, generator=torch.Generator().manual_seed(seed))
        noise[row, list(places)] = deviation * drawn

    def disturb(_: Tensor, out: Tensor) -> Tensor:
        return out + noise.to(out.device, out.dtype)

    with changed(table, disturb):
        logits = lm.logits(lm.batch([ids] * len(rows)))[:, -1].float()
    return logits.softmax(-1)[:, token].tolist()


def _rank(found: Sequence[Proposal]) -> list[Proposal]:
    """*found*, with the best proposal first; see `proposals`."""
    ranked = sorted(found, key=lambda each: -each.drop)
    if not ranked:
        return []
    least = max(ranked[0].drop, 0.0)
    names = [each for each in ranked if each.span.name and each.drop >= NAMES_FIRST * least]
    first = (names or ranked)[0]
    whole = [
        each
        for each in names
        if each.span.start <= first.span.start
        and each.span.end >= first.span.end
        and each.drop >= 0.8 * first.drop
    ]
    first = max(whole, key=lambda each: each.span.end - each.span.start, default=first)
    return [first, *(each for each in ranked if each is not first)]


def propose_subject(
    lm: Lm, prompt: str, answer: str | None, tell: Callable[[str], object]
) -> dict[str, str]:
    """Propose ``prompt`` with {} and ``subject``; *tell* receives a note with the runners-up.

    Raises `SubjectNotFoundError` if no words of *prompt* matter for the answer.
    """
    found = proposals(lm, prompt, answer)
    if not found or found[0].drop <= 0:
        raise SubjectNotFoundError(
            f"no words of {prompt!r} matter for the model's answer; give the subject with --subject"
        )
    best, *others = found
    after = ", ".join(f"{each.subject!r} {each.drop:.3f}" for each in others[:RUNNERS_UP])
    tell(
        f"subject: {best.subject!r} is taken; noise on it lowers the answer's probability by "
        f"{best.drop:.3f} (runners-up: {after or 'none'})"
    )
    template = f"{prompt[: best.span.start]}{{}}{prompt[best.span.end :]}"
    return {"prompt": template, "subject": best.subject}
