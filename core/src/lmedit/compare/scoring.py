"""Build a `Scoring`: the measures of a comparison, its held-out text and its reference texts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from lmedit.compare.case_scores import Scoring
from lmedit.errors import RequestError
from lmedit.metrics.generated_text import load_references
from lmedit.metrics.health import HeldOut
from lmedit.models import worlds

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm


def scoring_of(
    lm: Lm,
    groups: frozenset[str],
    heldout: Path | None,
    lines: int,
    references: Path | None,
    seed: int,
) -> Scoring:
    """Load the data of the *groups*. Raises an error that names the missing data."""
    texts = None
    if "health" in groups:
        texts = read_held_out(lm, heldout, lines)
    given = load_references(references) if references and "text" in groups else None
    return Scoring(groups, texts, given, seed)


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
