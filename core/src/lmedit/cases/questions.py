"""One record of a set of questions as a `Case`: QAEdit, WikiBigEdit or UltraEditBench.

Sources: QAEdit, Yang et al. 2025 (arXiv 2502.11177), `WenDingY/QAEdit` on the hub; WikiBigEdit,
Thede et al. 2025, `lukasthede/WikiBigEdit`; UltraEditBench, Gu et al. 2025 (arXiv 2505.14679),
`XiaojieGu/UltraEditBench`. Prompts are full questions. QAEdit and WikiBigEdit insert the true
answer. UltraEditBench does not say whether its answers are true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import answers, id_of, need, need_text, optional_texts, template
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

QAEDIT = frozenset({"id", "source", "prompt", "target", "subject", "rephrase", "locality"})
WIKIBIGEDIT = frozenset(
    {"tag", "subject", "relation", "object", "update", "ans", "rephrase", "personas"}
    | {"mhop", "mhop_ans", "loc", "loc_ans"}
)
ULTRAEDITBENCH = frozenset(
    {"case_id", "subject", "prompt", "ans", "rephrase_prompt", "loc", "loc_ans"}
)


def qaedit(record: Mapping[str, Any], index: int) -> Case:
    """The case of a QAEdit record; its locality is a list of objects {loc, loc_ans}.

    Some answers begin with blanks or end in "*"; both are no part of the answer.
    """
    return _case(
        record,
        id_of(record, "id", index),
        ("prompt", "target"),
        optional_texts(record, "rephrase"),
        tuple(_locality(each) for each in need(record, "locality", list)),
        inserts_truth=True,
    )


def wikibigedit(record: Mapping[str, Any], index: int) -> Case:
    """The case of a WikiBigEdit record; null fields give no prompt.

    The question in another voice (``personas``) has the same answer. The groups are ``personas``
    and ``mhop``, a question with two steps.
    """
    groups = {
        "personas": tuple(
            _probe(text, need_text(record, "ans"), "ans") for text in _texts_in(record, "personas")
        ),
        "mhop": _pair(record, "mhop", "mhop_ans"),
    }
    case = _case(
        record,
        str(index),
        ("update", "ans"),
        _texts_in(record, "rephrase"),
        _pair(record, "loc", "loc_ans"),
        inserts_truth=True,
    )
    return case.model_copy(update={"groups": {name: some for name, some in groups.items() if some}})


def ultraeditbench(record: Mapping[str, Any], index: int) -> Case:
    """The case of an UltraEditBench record: an edit, an equivalent and an unrelated question."""
    return _case(
        record,
        id_of(record, "case_id", index),
        ("prompt", "ans"),
        (need_text(record, "rephrase_prompt"),),
        _pair(record, "loc", "loc_ans"),
        inserts_truth=False,
    )


def _case(
    record: Mapping[str, Any],
    name: str,
    fields: tuple[str, str],
    paraphrases: tuple[str, ...],
    locality: tuple[Probe, ...],
    *,
    inserts_truth: bool,
) -> Case:
    """The case that *fields* of *record*, the prompt and the answer, describe."""
    asked, answer = fields
    prompt, subject = template(need_text(record, asked), need_text(record, "subject"), asked)
    return Case(
        id=name,
        request=Request(
            prompt=prompt, subject=subject, target_new=_clean(need_text(record, answer), answer)
        ),
        paraphrases=paraphrases,
        locality=locality,
        inserts_truth=inserts_truth,
    )


def _clean(text: str, name: str) -> str:
    """The answer *text* without blanks around it and without "*" at its end."""
    bare = text.strip().rstrip("*").rstrip()
    if not bare:
        raise ValueError(f"field {name!r} is {text!r}; an answer was expected")
    return bare


def _probe(prompt: str, answer: str, name: str) -> Probe:
    return Probe(prompt=prompt, answer=_clean(answer, name))


def _locality(entry: Any) -> Probe:
    right = answers(need(entry, "loc_ans", _kind_of(entry)), "loc_ans")
    if not right:
        raise ValueError("field 'loc_ans' is empty; a text was expected")
    cleaned = [_clean(text, "loc_ans") for text in right]
    return Probe(prompt=need_text(entry, "loc"), answer=cleaned[0], aliases=tuple(cleaned[1:]))


def _kind_of(entry: Any) -> type:
    """list if the entry holds several answers, else str."""
    found = entry.get("loc_ans") if isinstance(entry, dict) else None
    return list if isinstance(found, list) else str


def _texts_in(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of field *name* that are not blank; none if it is null or missing."""
    return tuple(text for text in optional_texts(record, name) if text.strip())


def _pair(record: Mapping[str, Any], asked: str, answer: str) -> tuple[Probe, ...]:
    """The probe of two fields; none without the question. A question needs its answer."""
    prompts = _texts_in(record, asked)
    return tuple(_probe(prompt, need_text(record, answer), answer) for prompt in prompts)
