"""From outcomes to a row of the results: means, intervals, failures with their reasons."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lmedit.metrics.scores import harmonic_mean, interval, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.compare.run import Outcome
    from lmedit.pipeline import Editor

SCORES = ("ES", "EM", "PS", "PM", "NS", "NM", "relation_specificity")


def summary_row(method: str, outcomes: Sequence[Outcome], editor: Editor | None) -> dict[str, Any]:
    """One row: scores in percent with 95 % half-widths, None where nothing was measured.

    A failed edit counts with the unedited model's scores (the user would be left with that
    model); a record that could not be read has no scores and counts in `n_failed` alone.
    """
    row: dict[str, Any] = {"method": method, "n": len(outcomes)}
    row["n_failed"] = sum(1 for outcome in outcomes if outcome.failure)
    scored = [outcome.scores.as_dict() for outcome in outcomes if outcome.scores]
    for name in SCORES:
        values = [scores[name] for scores in scored if scores[name] is not None]
        row[name] = _percent(mean(values))
        row[f"{name}_ci"] = _percent(interval(values))
    row["S"] = harmonic_mean([row["ES"], row["PS"], row["NS"]])
    row["GE"] = row["RS"] = None
    row["seconds_per_edit"] = mean([o.seconds for o in outcomes if o.seconds is not None])
    row["prepare_seconds"] = editor.prepare_seconds if editor else None
    row["failures"] = dict(Counter(o.failure for o in outcomes if o.failure))
    row["keys"] = [outcome.key for outcome in outcomes if outcome.key]
    if editor:
        row["version"] = editor.loaded.version
        row["options"] = editor.options.model_dump(mode="json")
    return row


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
