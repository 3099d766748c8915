"""Matches, GE, RS and essence: by hand, and against plain implementations written here."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lmedit.compare.measures import MEASURES
from lmedit.errors import CasesError
from lmedit.metrics import generated_text as texts
from lmedit.metrics.generated_text import (
    TfIdf,
    contains,
    entropy,
    essence_perplexity,
    exact_match,
    fluency,
    generation_entropy,
    load_tfidf,
    normalise_text,
    reference_score,
)
from lmedit.testing import TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

TERMS = ["the", "tower", "river", "boat", "city", "old"]
IDF = [1.0, 2.5, 1.5, 3.0, 2.0, 1.25]


@pytest.fixture
def tfidf() -> TfIdf:
    return TfIdf({term: i for i, term in enumerate(TERMS)}, np.array(IDF))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The\tOLD \n city. ", "the old city"),
        ('"Rome"', "rome"),
        ("¿Qué? ¡Sí!", "qué? ¡sí"),
        ("St. Paul's", "st. paul's"),
        ("$5 (five)", "$5 (five"),
        ("C++", "c++"),
        ("Straße", "strasse"),
        ("\uff32\uff4f\uff4d\uff45", "rome"),
        ("cafe\u0301", "café"),
        (" .,; ", ""),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_text(text) == expected
    assert normalise_text(normalise_text(text)) == expected


@pytest.mark.parametrize(
    ("generated", "target", "exact", "inside"),
    [
        (" Rome.", "rome", 1, 1),
        (" Rome. It is old", "Rome", 0, 1),
        ("Romeo and Juliet", "Rome", 0, 0),
        ("Romeo of Rome", "Rome", 0, 1),
        ("in 1912", "191", 0, 0),
        ("the 3rd", "3", 0, 0),
        ("Jerome", "Rome", 0, 0),
        ("New   York\nCity", "new york", 0, 1),
        ("New Yorker", "New York", 0, 0),
        ("首都是北京市。", "北京", 0, 1),
        ("Rome-based", "Rome", 0, 1),
        ("C++ and C", "C++", 0, 1),
        ("anything", "", 0, 0),
        ("anything", " . ", 0, 0),
        ("", "Rome", 0, 0),
        ("", "", 0, 0),
        ("Paris", "Rome", 0, 0),
    ],
)
def test_matches_by_hand(generated: str, target: str, exact: int, inside: int) -> None:
    assert (exact_match(generated, target), contains(generated, target)) == (exact, inside)


def test_an_exact_match_contains() -> None:
    for one in (*TEXTS, "北京", "3.14", "O'Neill"):
        assert exact_match(one.upper(), f" {one} ") == contains(one, one) == 1


def plain_entropy(words: list[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    shares = [grams.count(gram) / len(grams) for gram in set(grams)]
    return -sum(share * math.log(share, 2) for share in shares)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("length", [3, 4, 10, 65])
def test_all_distinct_n_grams_have_the_entropy_of_their_number(n: int, length: int) -> None:
    """n words have n - k + 1 k-grams; all distinct, they have the entropy of a fair draw."""
    words = [f"w{i}" for i in range(length)]
    assert entropy(words, n) == pytest.approx(math.log2(length - n + 1), abs=1e-12)


def test_entropy_by_hand() -> None:
    assert entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1.0)  # ab ba ab ba
    assert entropy(["a", "b", "a", "b"], 2) == pytest.approx(
        -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    )
    assert entropy(["a"] * 50, 2) == 0
    assert entropy(["a"], 2) == entropy([], 2) == 0


def test_fluency_by_hand() -> None:
    """Bigrams all distinct: 4, H = 2; trigrams: 3, H = log2 3."""
    expected = (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2
    assert fluency("the tower is old.") == pytest.approx(expected)
    assert fluency("no no no no no") == 0


def test_fluency_agrees_with_a_plain_count() -> None:
    text = " ".join(TEXTS) + " The tower stands, the tower's old; and the river runs." + TEXTS[0]
    words = re.findall(r"\w+|[^\w\s]", text)
    assert "'" in words
    expected = plain_entropy(words, 2) / 3 + 2 * plain_entropy(words, 3) / 3
    assert fluency(text) == pytest.approx(expected, abs=1e-12)


def test_generation_entropy_is_the_mean_over_texts() -> None:
    one, two = (fluency(text) for text in TEXTS[:2])
    assert one != two
    assert generation_entropy(TEXTS[:2]) == generation_entropy(TEXTS[1::-1])
    assert generation_entropy(TEXTS[:2]) == pytest.approx((one + two) / 2)
    assert generation_entropy([]) is None


def plain_cosine(one: str, other: str) -> float:
    """Dense vectors over the vocabulary, as scikit-learn does it, normalised."""
    vectors = []
    for text in (one, other):
        found = [w for w in re.split(r"\W+", text.lower()) if len(w) > 1]
        vector = np.array([found.count(t) * i for t, i in zip(TERMS, IDF, strict=True)])
        vectors.append(vector / np.linalg.norm(vector))
    return float(vectors[0] @ vectors[1])


def test_reference_score_by_hand(tfidf: TfIdf) -> None:
    """(tower 2.5, river 1.5) and (tower 2 x 2.5): 2.5 x 5 / (sqrt(8.5) x 5)."""
    score = reference_score(["A tower!", "River"], ["TOWER x tower"], tfidf)
    assert score == pytest.approx(2.5 / math.sqrt(8.5))


def test_reference_score_agrees_with_dense_vectors(tfidf: TfIdf) -> None:
    score = reference_score(TEXTS[:1], TEXTS[1:], tfidf)
    assert score == pytest.approx(plain_cosine(TEXTS[0], " ".join(TEXTS[1:])), abs=1e-12)
    assert score == pytest.approx(reference_score(TEXTS[1:], TEXTS[:1], tfidf), abs=1e-15)
    assert 0 < score < 1


def test_reference_score_at_its_ends(tfidf: TfIdf) -> None:
    assert reference_score(TEXTS, TEXTS[::-1], tfidf) == pytest.approx(1)
    assert reference_score(["tower"], ["river"], tfidf) == 0
    assert reference_score(["nothing known"], ["river"], tfidf) is None
    assert reference_score([], ["river"], tfidf) is None
    assert reference_score(["river"], ["t"], tfidf) is None


def written(folder: Path, columns: object, idf: np.ndarray) -> tuple[Path, Path]:
    vocabulary, values = folder / "tfidf_vocab.json", folder / "idf.npy"
    vocabulary.write_text(json.dumps(columns), encoding="utf-8")
    np.save(values, idf, allow_pickle=True)
    return vocabulary, values


def test_the_released_files_are_read(tmp_path: Path, tfidf: TfIdf) -> None:
    files = written(tmp_path, dict(tfidf.columns), np.array(IDF))
    loaded = load_tfidf(*files)
    assert dict(loaded.columns) == dict(tfidf.columns)
    assert loaded.idf.tolist() == IDF


@pytest.mark.parametrize(
    ("columns", "idf"),
    [
        ({"a": 0, "b": 1}, np.array([1.0])),
        ({"a": 0, "b": 0}, np.array([1.0, 2.0])),
        ({"a": 0}, np.array([[1.0]])),
        ({"a": 0}, np.array([np.nan])),
        ({"a": 0}, np.array(["x"])),
        ({"a": "0", "b": 1}, np.array([1.0, 2.0])),
        (["a"], np.array([1.0])),
        ({"a": 0}, np.array([1.0], dtype=object)),
    ],
    ids=["short", "twice", "matrix", "nan", "text", "mixed", "list", "pickle"],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, columns: object, idf: np.ndarray
) -> None:
    with pytest.raises(CasesError, match=r"tfidf_vocab\.json"):
        load_tfidf(*written(tmp_path, columns, idf))


def test_missing_files_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match="cannot read"):
        load_tfidf(tmp_path / "a.json", tmp_path / "b.npy")


def plain_perplexity(lm: Lm, ids: list[int]) -> float:
    total = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids[:place]])).logits[0, -1]
        total += logits.log_softmax(-1)[ids[place]].item()
    return math.exp(-total / len(ids))


@pytest.mark.parametrize("limit", [100, 7, 2])
def test_essence_counts_all_tokens_though_one_less_is_predicted(lm: Lm, limit: int) -> None:
    ids = lm.encode(" ".join(TEXTS))[:limit]
    expected = plain_perplexity(lm, ids)
    assert essence_perplexity(lm, TEXTS, limit) == pytest.approx(expected, rel=1e-9)


def test_essence_is_cut_to_100_tokens(lm: Lm) -> None:
    texts = TEXTS * 8
    assert len(lm.encode(" ".join(texts))) > lm.max_positions > 100
    expected = plain_perplexity(lm, lm.encode(" ".join(texts))[:100])
    assert essence_perplexity(lm, texts) == pytest.approx(expected, rel=1e-9)


def test_essence_of_a_single_token_and_of_none(lm: Lm) -> None:
    assert len(lm.encode("a")) == 1
    assert essence_perplexity(lm, ["a"]) == 1
    assert essence_perplexity(lm, []) is None


def test_the_protocol_in_results_names_the_word_pattern_in_use() -> None:
    assert texts.WORD.pattern in MEASURES["GE"].protocol
