"""One record of MEND's zsRE evaluation slice as a `Case`, by ROME's or by EasyEdit's mapping.

Source: `zsre_mend_eval.json` of Mitchell et al. 2022; `dsets/zsre.py:MENDQADataset` of ROME and
`easyeditor/dataset/zsre.py` of EasyEdit. They use different new answers, so their numbers cannot
be compared: ROME inserts the *true* answer, EasyEdit a false one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import need, need_text, template
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = frozenset({"subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond"})


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """ROME's mapping: the new answer is ``answers[0]``, the locality prompt ends in "?".

    ROME's true target "<|endoftext|>" means that there is none, so the case has none. The metric
    expands the locality answer token by token, as ROME does.
    """
    case = _case(record, index, _first_answer(record), None, need_text(record, "loc") + "?")
    return case.model_copy(update={"inserts_truth": True})


def case_from_alt(record: Mapping[str, Any], index: int) -> Case:
    """EasyEdit's mapping: the new answer is ``alt``, the true one ``answers[0]``."""
    new = need_text(record, "alt").strip()
    return _case(record, index, new, _first_answer(record), need_text(record, "loc"))


def _case(record: Mapping[str, Any], index: int, new: str, true: str | None, locality: str) -> Case:
    prompt, subject = template(need_text(record, "src"), need_text(record, "subject"), "src")
    return Case(
        id=str(index),
        request=Request(prompt=prompt, subject=subject, target_new=new, target_true=true),
        paraphrases=(need_text(record, "rephrase"),),
        locality=(Probe(prompt=locality, answer=need_text(record, "loc_ans")),),
    )


def _first_answer(record: Mapping[str, Any]) -> str:
    found = need(record, "answers", list)
    if not found or not isinstance(found[0], str):
        raise ValueError("field 'answers' holds no answer; a list of strings was expected")
    return found[0]
