"""Outcomes to a row of the results: means, intervals, failures with their reasons."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import HALF_WIDTH, MEASURES, measure, sort_columns
from lmedit.metrics.counterfact import harmonic_mean, interval, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.compare.comparison import Outcome
    from lmedit.pipeline import Editor

PARTS = ("ES", "PS", "NS")
"""The scores of which S is the harmonic mean."""
ZSRE_PARTS = ("efficacy", "paraphrase", "specificity")
"""The shares of which S of zsRE is the harmonic mean (ROME `summarize.py`)."""
EXTRAS = ("peak_mebibytes", "patch_bytes")


def summary_row(method: str, outcomes: Sequence[Outcome], editor: Editor | None) -> dict[str, Any]:
    """Make one row: scores as shown, 95 % half-widths, None for values that were not measured.

    A failed edit counts with the unedited model's scores, because the user would keep that model.
    A broken record has no scores; it counts only in `n_failed`.
    """
    row: dict[str, Any] = {"method": method, "n": len(outcomes)}
    row["n_failed"] = sum(1 for outcome in outcomes if outcome.failure)
    unsound = [outcome.unsound for outcome in outcomes if outcome.unsound]
    row["n_unsound"], row["unsound"] = len(unsound), next(iter(unsound), None)
    scored = [outcome.scores for outcome in outcomes if outcome.scores]
    always = {name for name, known in MEASURES.items() if known.of_case and not known.group}
    for name in sort_columns(
        always | {"GE", "RS"} | {name for scores in scored for name in scores}
    ):
        known = measure(name)
        scale = known.scale if known else 100.0
        values = [value for scores in scored if (value := scores.get(name)) is not None]
        row[name] = _scale(mean(values), scale)
        row[f"{name}{HALF_WIDTH}"] = _scale(interval(values), scale)
    row["S"] = harmonic_mean([row[name] for name in PARTS])
    row["zsre_S"] = harmonic_mean([row[name] for name in ZSRE_PARTS])
    seconds = [o.seconds for o in outcomes if o.seconds is not None]
    row["seconds_per_edit"] = mean(seconds)
    row["prepare_seconds"] = editor.prepare_seconds if editor else None
    row["seconds_amortised"] = _amortise(row, len(seconds))
    for name in EXTRAS:
        sizes = [value for o in outcomes if (value := o.extras.get(name)) is not None]
        row[name] = _scale(mean(sizes), MEASURES[name].scale)
    row["failures"] = dict(Counter(o.failure for o in outcomes if o.failure))
    row["keys"] = [outcome.key for outcome in outcomes if outcome.key]
    if editor:
        row["version"] = editor.loaded.version
        row["untuned"] = editor.options.untuned
        row["options"] = editor.options.model_dump(mode="json")
    return row


def _amortise(row: dict[str, Any], edits: int) -> float | None:
    """Seconds per edit plus an equal share of the preparation; the run has *edits* edits."""
    if row["seconds_per_edit"] is None:
        return None
    return float(row["seconds_per_edit"] + (row["prepare_seconds"] or 0.0) / edits)


def _scale(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
