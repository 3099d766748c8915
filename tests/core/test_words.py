"""Words by the Treebank's rules; the expected words are those of nltk 3.9's NLTKWordTokenizer."""

from __future__ import annotations

import pytest

from lmedit.metrics.generated_text import fluency, generation_entropy
from lmedit.metrics.words import sentences, treebank_words

WORDS = {
    'He said "Yes, I can\'t go" and left.': "He said `` Yes , I ca n't go '' and left .",
    "It cost $1,000.50 at 10:30 (about 5%).": "It cost $ 1,000.50 at 10:30 ( about 5 % ) .",
    "John's dogs' bones weren't there; they'll cannot come -- ever...": "John 's dogs ' bones were "
    "n't there ; they 'll can not come -- ever ...",
    "'Tis the season, gonna be good.": "' Tis the season , gon na be good .",
    "rock 'n' roll 'quoted words' here": "rock 'n ' roll ' quoted words ' here",
    "well-known state-of-the-art [see note] <b>x</b> a/b": "well-known state-of-the-art [ see note "
    "] < b > x < /b > a/b",
    "e-mail me@x.com http://a.b/c?d=1": "e-mail me @ x.com http : //a.b/c ? d=1",
    "I have 3,4 and a: b, c:d": "I have 3,4 and a : b , c : d",
    "the \u2018special\u2019 one\u2014no": "the \u2018 special \u2019 one\u2014no",
}


@pytest.mark.parametrize("text", WORDS)
def test_words_are_those_of_the_treebank(text: str) -> None:
    assert treebank_words(text) == WORDS[text].split(" ")


def test_only_the_last_full_stop_of_a_sentence_is_a_word() -> None:
    text = 'Mr. St. John met J. Smith in the U.S. Congress. He left. "Why?" 3 asked.'
    assert sentences(text) == [
        "Mr. St. John met J. Smith in the U.S. Congress.",
        "He left.",
        '"Why?"',
        "3 asked.",
    ]
    assert treebank_words("A b. C d.") == ["A", "b", ".", "C", "d", "."]


def test_published_fluency_counts_these_words() -> None:
    text = "John's dog, John's cat, John's dog."
    words = treebank_words(text)
    assert fluency(text, treebank=True) == _ge(words)
    assert fluency(text, treebank=True) != fluency(text)
    assert generation_entropy([text], treebank=True) == fluency(text, treebank=True)
    assert generation_entropy([], treebank=True) is None


def _ge(words: list[str]) -> float:
    import math
    from collections import Counter

    found = []
    for n in (2, 3):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        total = sum(grams.values())
        found.append(-sum(c / total * math.log2(c / total) for c in grams.values()))
    return pytest.approx(found[0] / 3 + 2 * found[1] / 3)  # type: ignore[return-value]
