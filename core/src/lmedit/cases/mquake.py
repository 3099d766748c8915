"""One record of MQuAKE-CF as a `Case` (Zhong et al. 2023, arXiv 2305.14795, README "Data format").

If the questions of a record change by several rewrites, one edit cannot be judged. Such a record
becomes a broken case, which tells how many edits it needs. MQuAKE-Remastered on the hub has the
same records; its rewrites are flat: ``target_new_str`` in place of ``target_new.str``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.counterfact import request_of
from lmedit.cases.fields import need, need_text, optional_texts, probes, texts
from lmedit.types import Case, Probe

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = frozenset(
    {
        "case_id",
        "requested_rewrite",
        "questions",
        "answer",
        "answer_alias",
        "new_answer",
        "new_answer_alias",
        "single_hops",
        "new_single_hops",
        "orig",
    }
)

TARGETS = ("target_new", "target_true")


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*; the question of the rewrite is its paraphrase.

    Groups: ``multi_hop`` has the three questions with the answer that follows from the edit;
    ``single_hop`` has the questions of the chain after the edit.
    """
    rewrites = need(record, "requested_rewrite", list)
    if len(rewrites) != 1:
        raise ValueError(f"needs {len(rewrites)} edits at once; one edit changes one fact")
    rewrite = _nest_targets(rewrites[0])
    right = (need_text(record, "new_answer"), *optional_texts(record, "new_answer_alias"))
    return Case(
        id=str(need(record, "case_id", int)),
        request=request_of(rewrite),
        paraphrases=(need_text(rewrite, "question"),),
        groups={
            "multi_hop": probes((question, right) for question in texts(record, "questions")),
            "single_hop": tuple(_hop(hop) for hop in need(record, "new_single_hops", list)),
        },
    )


def _nest_targets(rewrite: Any) -> Any:
    """*rewrite* with nested targets, if they are flat."""
    if not isinstance(rewrite, dict) or "target_new_str" not in rewrite:
        return rewrite
    flat = {name: rewrite[key] for name in TARGETS if (key := f"{name}_str") in rewrite}
    return {**rewrite, **{name: {"str": text} for name, text in flat.items()}}


def _hop(hop: Any) -> Probe:
    return Probe(
        prompt=need_text(hop, "question"),
        answer=need_text(hop, "answer"),
        aliases=optional_texts(hop, "answer_alias"),
    )
