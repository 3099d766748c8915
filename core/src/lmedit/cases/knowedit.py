"""One record of KnowEdit (wiki_counterfact and related sets) as a `Case`.

Source: `zjunlp/KnowEdit` on the hub and its loader `easyeditor/dataset/knowedit.py`; Zhang et al.
2024, arXiv 2401.01286. Prompts are full texts. An answer is a string, a list of right answers, or a
list of such lists. The first one is the answer, the others are its aliases. A probe without any
answer is left out, because nothing can judge it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import answers, name_of, need, need_text, optional_texts, probes, template
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEYS = frozenset(
    {
        "subject",
        "concept",
        "prompt",
        "text",
        "target_new",
        "labels",
        "ground_truth",
        "portability",
        "locality",
        "rephrase",
        "rephrase_prompt",
    }
)


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*: portability by group, all locality groups joined."""
    subject = _either(record, "subject", "concept")
    prompt, subject = template(_either(record, "prompt", "text"), subject, "prompt")
    true = answers(record.get("ground_truth"), "ground_truth")
    return Case(
        id=name_of(record, "case_id", index),
        request=Request(
            prompt=prompt,
            subject=subject,
            target_new=_either(record, "target_new", "labels"),
            target_true=true[0] if true else None,
        ),
        paraphrases=(
            *optional_texts(record, "rephrase"),
            *optional_texts(record, "rephrase_prompt"),
        ),
        locality=tuple(p for group in _groups(record, "locality").values() for p in group),
        groups=_groups(record, "portability"),
    )


def _either(record: Mapping[str, Any], name: str, other: str) -> str:
    """Field *name*, or *other*, its name in WikiBio."""
    return need_text(record, other if name not in record and other in record else name)


def _groups(record: Mapping[str, Any], name: str) -> dict[str, tuple[Probe, ...]]:
    if record.get(name) is None:
        return {}
    found = need(record, name, dict)
    return {
        group: probes(_pairs(need(found, group, list), f"{name}.{group}"))
        for group in found
        if found[group] is not None
    }


def _pairs(entries: list[Any], name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for entry in entries:
        if not isinstance(entry, dict) or not answers(entry.get("prompt"), f"{name}.prompt"):
            raise ValueError(f"field {name!r} must be a list of objects with a prompt each")
        right = answers(entry.get("ground_truth"), f"{name}.ground_truth")
        yield answers(entry["prompt"], f"{name}.prompt")[0], right
