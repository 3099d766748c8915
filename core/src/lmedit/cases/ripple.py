"""One record of RippleEdits as a `Case` (Cohen et al. 2024, arXiv 2307.12976, README).

The file has the edit as a whole sentence without the subject's name ("The name of the mother of
Ada is Bea."). So this module finds prompt and subject by the wording of each relation. If the
wording is not clear, the record is broken; nothing is guessed. The conditions of the tests
(`condition_queries`: what the unedited model must know) depend on the model and are not applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import answers, need, need_text, optional_texts, probes
from lmedit.types import Case, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CRITERIA = {
    "Logical_Generalization": "Logical_Generalization",
    "Compositionality_I": "Compositionality_I",
    "Compositionality_II": "Compositionality_II",
    "Subject_Aliasing": "Subject_Aliasing",
    "Relation_Specificity": "Relation_Specificity",
    "Relation_Specifity": "Relation_Specificity",  # the spelling in the README
    "Forgetfulness": "Forgetfulness",
}
KEYS = frozenset({"example_type", "edit", *CRITERIA})

WORDING = {
    "SEX_OR_GENDER": ("gender of", "is"),
    "NATIVE_LANGUAGE": ("mother tongue of", "is"),
    "CAPITAL": ("capital city of", "is"),
    "POSITION_HELD": ("position held by", "is"),
    "CURRENCY": ("currency in", "is"),
    "SIBLING": ("siblings of", "are"),
    "CAST_MEMBER": ("cast members of", "are"),
    "NUMBER_OF_CHILDREN": ("number of children", "has is"),
    "AWARD_RECEIVED": ("award", "won is"),
    "COUNTRY": ("country which", "is associated with is"),
    "ETHNIC_GROUP": ("ethnic group which", "is associated with is"),
    "RELIGION": ("religion which", "is associated with is"),
    "CONTINENT": ("continent which", "is part of is"),
    "CAPITAL_OF": ("country which", "is the capital of is"),
    "MEMBER_OF_SPORTS_TEAM": ("sports team which", "is a member of is"),
    "LEAGUE": ("league which", "plays in is"),
    "FOLLOWS": ("", "follows"),
    "FOLLOWED_BY": ("", "is followed by"),
}
"""The words before and after the subject, if they are not "RELATION of" and "is"."""


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*, with its criteria as groups."""
    edit = need(record, "edit", dict)
    old = edit.get("original_fact") or {}
    sentence = need_text(edit, "prompt")
    known = need_text(old, "prompt") if old else None
    prompt, subject = _split_sentence(sentence, known, need_text(edit, "relation"))
    stem = prompt.replace("{}", subject)
    if known is not None and not known.startswith(stem):
        raise ValueError(f"field 'original_fact.prompt' ({known!r}) does not begin with {stem!r}")
    return Case(
        id=str(index),
        request=Request(
            prompt=prompt,
            subject=subject,
            target_new=_rest(sentence, stem),
            target_true=_rest(known, stem) or None if known else None,
        ),
        groups={
            CRITERIA[name]: probes(_queries(need(record, name, list)))
            for name in CRITERIA
            if name in record
        },
    )


def _split_sentence(sentence: str, known: str | None, relation: str) -> tuple[str, str]:
    """The prompt with {}, and the subject; *known* is the same sentence with the old answer."""
    words = relation.lower().replace("_", " ")
    before, after = WORDING.get(relation, (f"{words} of", "is"))
    before, after = f"{before} " if before else "", f" {after} "
    start = sentence.find(before) + len(before)
    ends = [at for at in range(start + 1, len(sentence)) if sentence.startswith(after, at)]
    if len(ends) > 1 and known is not None:
        ends = [at for at in ends if known[: at + len(after)] == sentence[: at + len(after)]]
    if before not in sentence or len(ends) != 1:
        raise ValueError(
            f"field 'edit.prompt' ({sentence!r}) does not show its subject; "
            f"'{before}SUBJECT{after}TARGET' was expected once for {relation}"
        )
    (end,) = ends
    return f"{sentence[:start]}{{}}{after.rstrip()}", sentence[start:end]


def _rest(sentence: str, stem: str) -> str:
    return sentence.removeprefix(stem).strip().removesuffix(".").strip()


def _queries(tests: list[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each test query with all its right answers, the named answer first."""
    for test in tests:
        for query in need(test, "test_queries", list):
            right = [
                [need(answer, "value", str), *optional_texts(answer, "aliases")]
                for answer in need(query, "answers", list)
            ]
            yield need_text(query, "prompt"), answers(right, "answers")
