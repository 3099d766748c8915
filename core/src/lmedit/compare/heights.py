"""The ways in which edits pile up in one model, and the measures of a pile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.compare.comparison import Outcome
    from lmedit.compare.store import Stored

Kind = Literal["batch", "sequential", "batched"]
Computed = Literal["joint", "sum", "one by one", "prompt"]


@dataclass(frozen=True)
class Regime:
    """How edits pile up, at which sizes they are scored, and when a model has collapsed.

    A model has collapsed if its perplexity on held-out text is above `collapse` times the base's.
    With `stop`, a method stops editing when the model has collapsed. `batch` is the number of facts
    that a method edits at a time in the regime `batched`.
    """

    kind: Kind
    sizes: tuple[int, ...]
    collapse: float = 10.0
    stop: bool = False
    batch: int = 1


@dataclass(frozen=True)
class Height:
    """A pile of one size: the outcomes of its cases, the model's scores, whether it collapsed."""

    size: int
    outcomes: list[Outcome]
    model: dict[str, float | None]
    collapsed: bool
    computed: Computed = "one by one"
    told: Mapping[str, Any] = field(default_factory=dict)
    """The abilities of this model, as a row tells them; empty if none was asked."""
    right_after: list[Outcome] | None = None
    """The outcome of each case on the model right after its own edit."""


@dataclass(frozen=True)
class Part:
    """One edit: the cases from `start` up to `end`, and its stored result."""

    start: int
    end: int
    stored: Stored
