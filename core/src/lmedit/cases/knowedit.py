"""One record of KnowEdit (wiki_counterfact and related sets) as a `Case`.

Source: `zjunlp/KnowEdit` on the hub and its loader `easyeditor/dataset/knowedit.py`; Zhang et al.
2024, arXiv 2401.01286. Prompts are full texts. An answer is a string, a list of right answers, or a
list of such lists. The first one is the answer, the others are its aliases. A probe without any
answer is left out, because no answer can be right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import answers, id_of, need, need_text, optional_texts, probes, template
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
        "locality_prompt",
        "locality_ground_truth",
        "portability_prompt",
        "portability_ground_truth",
    }
)


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*: portability by group, all locality groups joined.

    EasyEdit's flat records hold one prompt or a list in ``locality_prompt`` and its answers in
    ``locality_ground_truth``; the same for portability.
    """
    subject = _either(record, "subject", "concept")
    prompt, subject = template(_either(record, "prompt", "text"), subject, "prompt")
    true = answers(record.get("ground_truth"), "ground_truth")
    return Case(
        id=id_of(record, "case_id", index),
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
        locality=(
            *(p for group in _groups(record, "locality").values() for p in group),
            *_flat(record, "locality"),
        ),
        groups=_groups(record, "portability")
        | ({"portability": flat} if (flat := _flat(record, "portability")) else {}),
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


def _flat(record: Mapping[str, Any], name: str) -> tuple[Probe, ...]:
    """The probes of a flat record. Raises `ValueError` if prompts and answers do not pair."""
    asked, truth = f"{name}_prompt", f"{name}_ground_truth"
    prompts = optional_texts(record, asked)
    if not prompts:
        return ()
    given = record.get(truth)
    each = given if isinstance(given, list) and len(prompts) > 1 else [given]
    if given is None or len(each) != len(prompts):
        raise ValueError(
            f"field {asked!r} has {len(prompts)} prompts, and {truth!r} has "
            f"{0 if given is None else len(each)} answers; one for each was expected"
        )
    return probes(
        (prompt, answers(right, truth)) for prompt, right in zip(prompts, each, strict=True)
    )


def _pairs(entries: list[Any], name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for entry in entries:
        if not isinstance(entry, dict) or not answers(entry.get("prompt"), f"{name}.prompt"):
            raise ValueError(f"field {name!r} must be a list of objects with a prompt each")
        right = answers(entry.get("ground_truth"), f"{name}.ground_truth")
        yield answers(entry["prompt"], f"{name}.prompt")[0], right
