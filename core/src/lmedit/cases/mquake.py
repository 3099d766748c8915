"""One record of MQuAKE-CF as a `Case` (Zhong et al. 2023, arXiv 2305.14795, README "Data format").

The questions of a record may change by several rewrites. Then the case has further edits, which a
method makes together with the first. MQuAKE-Remastered on the hub has the same records; its
rewrites are flat: ``target_new_str`` in place of ``target_new.str``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.cases.counterfact import request_of
from lmedit.cases.fields import need, need_text, optional_texts, probes, texts
from lmedit.types import Case, FurtherEdit, Probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """The case of *record*; the question of each rewrite is its paraphrase.

    Groups: ``multi_hop`` has the three questions with the answer that follows from the edit;
    ``single_hop`` has the questions of the chain after the edit.
    """
    rewrites = need(record, "requested_rewrite", list)
    if not rewrites:
        raise ValueError("field 'requested_rewrite' is empty; a rewrite was expected")
    first, *further = map(_edit, rewrites)
    _check_apart([first, *further])
    right = (need_text(record, "new_answer"), *optional_texts(record, "new_answer_alias"))
    return Case(
        id=str(need(record, "case_id", int)),
        request=first.request,
        paraphrases=first.paraphrases,
        further=tuple(further),
        groups={
            "multi_hop": probes((question, right) for question in texts(record, "questions")),
            "single_hop": tuple(_hop(hop) for hop in need(record, "new_single_hops", list)),
        },
    )


def _edit(rewrite: Any) -> FurtherEdit:
    nested = _nest_targets(rewrite)
    return FurtherEdit(request=request_of(nested), paraphrases=(need_text(nested, "question"),))


def _check_apart(edits: Sequence[FurtherEdit]) -> None:
    """Raise `ValueError` if two of *edits* give one prompt an answer."""
    prompts = [edit.request.text for edit in edits]
    for prompt in prompts:
        if prompts.count(prompt) > 1:
            raise ValueError(
                f"needs {len(edits)} edits at once, and two of them change {prompt!r}; one fact "
                "has one answer"
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
