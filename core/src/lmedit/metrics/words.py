"""Words by the rules of the Penn Treebank, for the published GE.

The released code of ROME counts the n-grams of `nltk.word_tokenize`: sentences, then the words of
the Penn Treebank (Marcus et al. 1993; R. MacIntyre's description of 1995). The rules here are
written from that description. Sentences end at a full stop before a capital, except after an
abbreviation or an initial; nltk's trained list of abbreviations is longer.
"""

from __future__ import annotations

import re

_SHORT = """
mr mrs ms dr prof st jr sr vs etc no vol pp ed eds co corp inc ltd rev gen col lt sgt capt gov sen
rep jan feb mar apr jun jul aug sept sep oct nov dec fig approx dept univ u.s u.k e.g i.e a.m p.m
d.c ph.d
"""
ABBREVIATIONS = frozenset(_SHORT.split())
"""Words whose full stop does not end a sentence."""
_SENTENCE_END = re.compile(r"(?<=[.?!])([\"'\u201d\u2019)\]]*)\s+(?=[\"'\u201c\u2018(\[]*[A-Z\d])")
_PAIRS = "cannot can|not gimme gim|me gonna gon|na gotta got|ta lemme lem|me wanna wan|na"
_SPLIT = {
    word: tuple(parts.split("|")) for word, parts in zip(*[iter(_PAIRS.split())] * 2, strict=True)
}
"""Words that the Treebank splits in two."""
_ALONE = r"[?!;@\#$%&*()\[\]{}<>\"\u2018\u2019\u201c\u201d\u00ab\u00bb]"
"""Signs that are always words of their own."""
_OTHER = rf"(?:(?!{_ALONE}|\s|\.{{2,}}|--|[,:](?!\d)|`|'').)+"
_WORD = re.compile(
    rf"""
    ``|''                     # quotes, already in Treebank's form
    | \.{{2,}} | --            # dots and dashes
    | {_ALONE}
    | [,:](?!\d) | (?<!\d)[,:]  # but 1,000 and 10:30 are one word
    | ` | '(?=\s|$)           # a backtick; a single quote at the end
    | {_OTHER}
    """,
    re.VERBOSE,
)
_ENDING = re.compile(r"(?i)(.+?)('s|'m|'d|'ll|'re|'ve|n't|')$")


def treebank_words(text: str) -> list[str]:
    """The words of *text*, sentence by sentence."""
    return [word for sentence in sentences(text) for word in _words_of(sentence)]


def sentences(text: str) -> list[str]:
    """The sentences of *text*; blanks between them are left out."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        before = text[start : end.start()].rsplit(None, 1)[-1:]
        word = before[0].rstrip(".").lstrip("(\"'") if before else ""
        initial = len(word) == 1 and word.isupper()
        if text[end.start() - 1] == "." and (word.lower() in ABBREVIATIONS or initial):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [each for each in (*found, text[start:].strip()) if each]


def _words_of(sentence: str) -> list[str]:
    """The words of one sentence. Only its last full stop is a word of its own."""
    quoted = re.sub(r"(^|[\s(\[{<])\"", r"\1 `` ", sentence)
    quoted = re.sub(r"(^|[\s(\[{<`])'(?=\w{2,})", r"\1' ", quoted.replace('"', " '' "))
    ended = re.sub(r"([^.])\.([\])}>\"'\u201d\u2019\s]*)$", r"\1 . \2", quoted)
    found: list[str] = []
    for part in ended.split():
        for match in _WORD.finditer(part):
            found += _split_word(match.group())
    return found


def _split_word(word: str) -> list[str]:
    """A word in its Treebank parts: do n't, John 's, can not."""
    if (parts := _SPLIT.get(word.lower())) is not None:
        cut = len(parts[0])
        return [word[:cut], word[cut:]]
    ends: list[str] = []
    while (found := _ENDING.fullmatch(word)) and word.strip("'"):
        word, end = found.group(1), found.group(2)
        ends.insert(0, end)
        if end == "'":
            break
    return [word, *ends]
