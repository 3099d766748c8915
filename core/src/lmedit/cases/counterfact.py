"""One record of CounterFact's official JSON file as a `Case` (Meng et al. 2022, figure 21)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import need, optional, texts
from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = frozenset(
    {
        "case_id",
        "pararel_idx",
        "requested_rewrite",
        "paraphrase_prompts",
        "neighborhood_prompts",
        "attribute_prompts",
        "generation_prompts",
        "relation_prompts",
    }
)


def case_from(record: Mapping[str, Any], index: int = 0) -> Case:
    """The case of *record*. Raises `ValueError` with the field and what was expected."""
    rewrite = need(record, "requested_rewrite", dict)
    return Case(
        id=str(need(record, "case_id", int)),
        request=request_of(rewrite),
        relation=optional(rewrite, "relation_id"),
        target_id=optional(rewrite["target_new"], "id"),
        paraphrases=texts(record, "paraphrase_prompts"),
        neighbours=texts(record, "neighborhood_prompts"),
        attributes=texts(record, "attribute_prompts"),
        generation=texts(record, "generation_prompts"),
        relations=_relations(record),
    )


def _relations(record: Mapping[str, Any]) -> tuple[Probe, ...]:
    """Facts about the same subject; worlds add them to the official fields."""
    if record.get("relation_prompts") is None:
        return ()
    return tuple(Probe.model_validate(p) for p in need(record, "relation_prompts", list))


def request_of(rewrite: Mapping[str, Any]) -> Request:
    """The request of a rewrite in CounterFact's form; MQuAKE uses the same form."""
    return Request(
        prompt=need(rewrite, "prompt", str),
        subject=need(rewrite, "subject", str),
        target_new=need(need(rewrite, "target_new", dict), "str", str),
        target_true=need(need(rewrite, "target_true", dict), "str", str),
    )
