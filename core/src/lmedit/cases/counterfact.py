"""One record of CounterFact's official JSON file as a `Case` (Meng et al. 2022, figure 21)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.types import Case, Probe, Request

if TYPE_CHECKING:
    from collections.abc import Mapping


def case_from(record: Mapping[str, Any]) -> Case:
    """The case of *record*; raises `ValueError` naming the field and what was expected."""
    rewrite = _field(record, "requested_rewrite", dict)
    request = Request(
        prompt=_field(rewrite, "prompt", str),
        subject=_field(rewrite, "subject", str),
        target_new=_field(_field(rewrite, "target_new", dict), "str", str),
        target_true=_field(_field(rewrite, "target_true", dict), "str", str),
    )
    return Case(
        id=str(_field(record, "case_id", int)),
        request=request,
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighbours=_texts(record, "neighborhood_prompts"),
        attributes=_texts(record, "attribute_prompts"),
        generation=_texts(record, "generation_prompts"),
        relations=tuple(Probe.model_validate(p) for p in record.get("relation_prompts", [])),
    )


def _field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in record:
        raise ValueError(f"field {name!r} is missing (a {kind.__name__} was expected)")
    value = record[name]
    if not isinstance(value, kind):
        raise ValueError(
            f"field {name!r} is a {type(value).__name__}; a {kind.__name__} was expected"
        )
    return value


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    texts = _field(record, name, list)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"field {name!r} must be a list of strings")
    return tuple(texts)
