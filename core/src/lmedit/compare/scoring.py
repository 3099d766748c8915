"""Build a `Scoring`: the measures of a comparison, its held-out text and its reference texts.

Score single cases with it, so that a record that cannot be scored is a failure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from lmedit.compare.case_scores import Scoring
from lmedit.compare.one_edit import failure_of
from lmedit.compare.result import Result
from lmedit.errors import RequestError
from lmedit.metrics.abilities import Abilities
from lmedit.metrics.generated_text import load_references
from lmedit.metrics.health import HeldOut
from lmedit.models import worlds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm
    from lmedit.types import Case

    Before = Tensor | str | None
    """The scores of a case on the base model, None if nobody needs them, or the failure."""


def scoring_of(
    lm: Lm,
    groups: frozenset[str],
    heldout: Path | None,
    lines: int,
    references: Path | None,
    seed: int,
    abilities: Wanted | None = None,
) -> Scoring:
    """Load the data of the *groups*. Raises an error that names the missing data."""
    texts = None
    if "health" in groups:
        texts = read_held_out(lm, heldout, lines)
    given = load_references(references) if references and "text" in groups else None
    tasks = Abilities(lm, abilities) if abilities else None
    return Scoring(groups, texts, given, seed, tasks)


def read_held_out(lm: Lm, path: Path | None, lines: int) -> HeldOut:
    """The first *lines* non-empty lines of *path*, or of the world's own held-out text."""
    if path is None:
        if lm.world not in worlds():
            raise RequestError(f"{lm.name} has no held-out text of its own; give --heldout FILE")
        path = worlds()[lm.world].heldout
    try:
        with path.open(encoding="utf-8") as text:
            return HeldOut(lm, islice((line for line in text if line.strip()), lines))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {error}; give a text file") from error


def scores_before(scoring: Scoring, lm: Lm, cases: Sequence[Case]) -> list[Before]:
    """The scores of each case on the base model *lm*, or why they cannot be measured."""

    def one(case: Case) -> Before:
        try:
            return scoring.before(lm, [case])[0]
        except Exception as error:  # noqa: BLE001  (it is told as the failure of this case)
            return failure_of(error)

    try:
        return [*scoring.before(lm, cases)]
    except Exception:  # noqa: BLE001  (one text may be too long, for example)
        return [one(case) for case in cases]


def score_group(
    scoring: Scoring, lm: Lm, cases: Sequence[Case], before: Sequence[Before]
) -> list[Result]:
    """As `score_case` for each of *cases*, in shared passes; one by one if a case fails."""
    known = [each for each in before if not isinstance(each, str)]
    try:
        found = scoring.score(lm, cases, known) if len(known) == len(cases) else None
    except Exception:  # noqa: BLE001  (one text may be too long, for example)
        found = None
    if found is None:
        return [score_case(scoring, lm, *pair) for pair in zip(cases, before, strict=True)]
    return [replace(each, scores=only_finite(each.scores or {})) for each in found]


def score_case(scoring: Scoring, lm: Lm, case: Case, before: Before) -> Result:
    """The scores of *case* on the present model; a record that cannot be scored is a failure."""
    if isinstance(before, str):
        return Result(failure=before)
    try:
        result = scoring.score(lm, [case], [before])[0]
    except Exception as error:  # noqa: BLE001  (one text may be too long, for example)
        return Result(failure=failure_of(error))
    return replace(result, scores=only_finite(result.scores or {}))


def only_finite(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace NaN and infinity by None: a destroyed model has no score."""
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in scores.items()
    }
