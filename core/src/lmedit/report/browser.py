"""The single cases, as data for the page's browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import measure
from lmedit.report.columns import Column
from lmedit.report.heatmap import groups
from lmedit.report.read import BASE

if TYPE_CHECKING:
    from lmedit.report.read import FinishedRun, StoredCase, Text


def browser_data(run: FinishedRun) -> str:
    """JSON that is safe inside a `script` element for cases with any content."""
    kinds = {group: number for number, group in enumerate(groups(run))}
    known = [Column(name, measure(name)) for name in run.score_names]
    data = {
        "base": BASE,
        "methods": run.methods,
        "scores": run.score_names,
        "labels": [column.label for column in known],
        "scales": [column.scale for column in known],
        "digits": [column.digits for column in known],
        "relations": list(kinds),
        "cases": [
            _case(case_id, text, kinds) for case_id, text in zip(run.ids, run.texts, strict=True)
        ],
        "results": [[_result(run, entry) for entry in run.entries[m]] for m in run.methods],
    }
    return escape_json(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def escape_json(text: str) -> str:
    """Escape JSON so that no character can end a `script` element or start markup."""
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _case(case_id: str, text: Text | None, kinds: dict[str, int]) -> dict[str, Any]:
    if text is None:
        return {"id": case_id}
    fact = text.request
    return {
        "id": case_id,
        "prompt": fact.prompt,
        "subject": fact.subject,
        "new": fact.target_new,
        "true": fact.target_true,
        "relation": kinds[text.group],
        "paraphrases": text.paraphrases,
        "neighbours": text.neighbours,
    }


def _result(run: FinishedRun, entry: StoredCase) -> dict[str, Any]:
    """The values of one method on one case, without the unknown ones."""
    payload = entry.payload
    found: dict[str, Any] = {
        "scores": [entry.scores.get(name) for name in run.score_names] if entry.scores else None,
        "failure": payload.failure,
        "seconds": entry.seconds,
        "bytes": payload.bytes,
        "norms": payload.norms or None,
        "generated": payload.generated or None,
    }
    return {name: value for name, value in found.items() if value is not None}
