"""Scores of generated texts: matches, and CounterFact's GE, RS and essence.

Source: Meng et al. 2022 (arXiv 2202.05262), section 3.3 and its released code;
docs/explanation/comparing.md has the protocols.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmedit.errors import CasesError
from lmedit.metrics.words import treebank_words
from lmedit.replay.batches import log_probabilities, read_rows
from lmedit.storage.arrays import read_npy
from lmedit.storage.cache import key_of
from lmedit.storage.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Case

WORD = re.compile(r"\w+|[^\w\s]")
"""A word of GE: letters, digits and _, or one other character; nearly the words of nltk."""
TERM = re.compile(r"\b\w\w+\b")
"""A term of RS: the default of scikit-learn's `TfidfVectorizer`."""


def normalise_text(text: str) -> str:
    """Normalise *text*: NFKC, casefold, one blank between words, no punctuation at the ends.

    Punctuation is Unicode's (categories P*); characters such as $ or + stay.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    inside = [i for i, sign in enumerate(words) if not _is_edge_sign(sign)]
    return words[inside[0] : inside[-1] + 1] if inside else ""


def _is_edge_sign(sign: str) -> bool:
    return sign == " " or unicodedata.category(sign).startswith("P")


def exact_match(generated: str, target: str) -> float:
    """1 if *generated* equals *target* after `normalise_text`; else 0. An empty target gives 0."""
    wanted = normalise_text(target)
    return float(bool(wanted) and normalise_text(generated) == wanted)


def contains(generated: str, target: str) -> float:
    """1 if *generated* contains *target* at word edges, both after `normalise_text`; else 0.

    There is no word edge between two digits or letters of a script with capitals: "Romeo" does not
    contain "Rome". Scripts without capitals do not separate words, so any place counts there.
    """
    text, wanted = normalise_text(generated), normalise_text(target)
    at = text.find(wanted) if wanted else -1
    while at >= 0:
        end = at + len(wanted)
        if not _no_edge(text[at - 1 : at], text[at]) and not _no_edge(
            text[end - 1], text[end:][:1]
        ):
            return 1.0
        at = text.find(wanted, at + 1)
    return 0.0


def _no_edge(one: str, other: str) -> bool:
    return all(sign.isdigit() or sign.lower() != sign.upper() for sign in (one, other))


def entropy(words: Sequence[str], n: int) -> float:
    """H_n = -sum f log2 f in bits; f are the shares of the n-grams of *words*; 0 without n-grams.

    ROME `eval_utils_counterfact.py:compute_n_gram_entropy`. If all n-grams differ, it is log2 of
    their number.
    """
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


def fluency(text: str, *, treebank: bool = False) -> float:
    """GE of one text: mean(2/3 H_2, 4/3 H_3) = H_2 / 3 + 2 H_3 / 3.

    The words are those of `WORD` after NFC, or with *treebank* those of the published GE.
    """
    words = treebank_words(text) if treebank else WORD.findall(unicodedata.normalize("NFC", text))
    return (2 / 3 * entropy(words, 2) + 4 / 3 * entropy(words, 3)) / 2


def generation_entropy(texts: Sequence[str], *, treebank: bool = False) -> float | None:
    """GE: the mean `fluency` of *texts* in bits (tables print 100 times it); None without texts."""
    each = [fluency(text, treebank=treebank) for text in texts]
    return math.fsum(each) / len(each) if each else None


@dataclass(frozen=True)
class TfIdf:
    """The columns and idf of the terms. tf-idf is count times idf; the cosine needs no norm."""

    columns: Mapping[str, int]
    idf: np.ndarray[Any, np.dtype[np.float64]]

    def weights(self, text: str) -> dict[str, float]:
        """The tf-idf of the known terms of *text*; the text is lower-cased and split by `TERM`."""
        counts = Counter(TERM.findall(text.lower()))
        return {
            term: count * float(self.idf[self.columns[term]])
            for term, count in counts.items()
            if term in self.columns
        }


def load_tfidf(vocabulary: Path, idf: Path) -> TfIdf:
    """Read ROME's `tfidf_vocab.json` (term to column) and `idf.npy`, without pickles.

    Raises `CasesError` if a file cannot be read or if the two files do not fit together.
    """
    try:
        columns = read_json(vocabulary)
        values = read_npy(idf, 1).astype(np.float64)
        places = sorted(columns.values())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CasesError(f"cannot read {vocabulary} with {idf}: {error}") from error
    if values.ndim != 1 or not np.isfinite(values).all() or places != list(range(len(values))):
        raise CasesError(
            f"{vocabulary} names {len(places)} columns and {idf} has shape {values.shape}; "
            "give the two files of one vectorizer"
        )
    return TfIdf(columns, values)


@dataclass(frozen=True)
class References:
    """ROME's reference texts: (subject, text) pairs by (relation, target), and the tf-idf."""

    tfidf: TfIdf
    snippets: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
    digest: str = ""

    def of(self, case: Case) -> tuple[list[str], list[str]]:
        """All texts about subjects with the case's new answer, and those about its own subject."""
        found = self.snippets.get((case.relation or "", case.target_id or ""), ())
        own = [text for name, text in found if name == case.request.subject]
        return [text for _, text in found], own


def load_references(folder: Path) -> References:
    """Read `attribute_snippets.json`, `tfidf_vocab.json` and `idf.npy` from *folder* (8.4).

    Raises `CasesError` if a file is missing or has another layout.
    """
    tfidf = load_tfidf(folder / "tfidf_vocab.json", folder / "idf.npy")
    path = folder / "attribute_snippets.json"
    try:
        snippets = {
            (entry["relation_id"], entry["target_id"]): [
                (sample["name"], sample["text"]) for sample in entry["samples"]
            ]
            for entry in read_json(path)
        }
    except (OSError, ValueError) as error:
        raise CasesError(f"cannot read {path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise CasesError(
            f"{path}: {error!r}; it must be a list of objects with relation_id, target_id and "
            "samples, each with name and text"
        ) from error
    texts = [[*key, *pairs] for key, pairs in sorted(snippets.items())]
    return References(tfidf, snippets, key_of(texts=texts, idf=tfidf.idf.tolist()))


def reference_score(
    generated: Sequence[str], references: Sequence[str], tfidf: TfIdf
) -> float | None:
    """RS: cosine of the tf-idf of all *generated* and all *references*, each joined.

    ROME `eval_utils_counterfact.py:tfidf_similarity`. None if a side has no known term; the
    released code returns NaN or fails then.
    """
    one, other = (tfidf.weights(" ".join(texts)) for texts in (generated, references))
    norms = math.hypot(*one.values()) * math.hypot(*other.values())
    if not norms:
        return None
    return math.fsum(value * other.get(term, 0.0) for term, value in one.items()) / norms


def essence_perplexity(
    lm: Lm, texts: Sequence[str], max_tokens: int = 100, under: RowEdits | None = None
) -> float | None:
    """exp(-(1/N) sum_{t=2..N} log P(x_t | x_<t)) of the joined *texts*, cut to *max_tokens*.

    N is the number of tokens, although only N - 1 are predicted: ROME `util/perplexity.py`. None
    without tokens. `health` measures the plain perplexity.
    """
    ids = lm.encode(" ".join(texts))[: min(max_tokens, lm.max_positions)]
    if not ids:
        return None

    def read(_: int, logits: Tensor) -> float:
        logs = log_probabilities(logits[:-1]).tolist()
        return math.fsum(row[token] for row, token in zip(logs, ids[1:], strict=True))

    return math.exp(-read_rows(lm, [ids], read, under=under)[0] / len(ids))
