"""What a patch file says of itself, checked before its tensors are read."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmedit.types import DELTAS, Site

if TYPE_CHECKING:
    from collections.abc import Mapping

    Layout = Mapping[str, tuple[str, tuple[int, ...]]]
    """Tensors by name: number type, as safetensors calls it, and shape."""

NUMBERS = frozenset({"F16", "BF16", "F32", "F64"})


class _Known(BaseModel):
    """Keys with these types; what else stands there is somebody's own."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class Change(_Known):
    """One changed parameter, and of what kind its change is."""

    parameter: str
    transposed: bool
    delta: Literal["low_rank", "dense"]


class Base(_Known):
    """The model that the edit was made on: `lmedit.ledger.base_of`."""

    name: str | None = None
    digest: str | None = None
    revision: str | None = None
    touched: str | None = None


class Answers(_Known):
    """Probabilities of the new answer, and of the old one where it is known."""

    target_new: float
    target_true: float | None = None


class Metrics(_Known):
    """What was measured when the edit was made."""

    before: Answers
    after: Answers
    survives: float | None = None
    """The share of the change that rounding to half precision leaves."""
    number_type: str | None = None


class Facts(_Known):
    """All that stands in a patch beside its tensors."""

    sites: list[Change]
    notes: dict[str, Any]
    request: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    model: Base = Base()
    metrics: Metrics | None = None


def shapes_of(facts: Facts, layout: Layout) -> dict[Site, tuple[int, int]]:
    """(d_out, d_in) of every change, from the *layout* of the file's tensors alone.

    Raises `ValueError` where the tensors are not those of the changes, and for a rank above
    d_out + d_in: no change needs more than the smaller of the two.
    """
    shapes: dict[Site, tuple[int, int]] = {}
    expected = set()
    for number, change in enumerate(facts.sites):
        names = [f"{number}.{each.name}" for each in fields(DELTAS[change.delta])]
        expected |= set(names)
        found = [layout[name] for name in names if name in layout]
        if len(found) < len(names):
            raise ValueError(f"the change of {change.parameter} lacks a tensor")
        if not all(kind in NUMBERS and len(shape) == 2 for kind, shape in found):
            raise ValueError(f"the change of {change.parameter} is no matrix of numbers")
        (rows, inner), (outer, columns) = found[0][1], found[-1][1]
        if len(found) == 2 and not inner == outer <= rows + columns:
            raise ValueError(f"the change of {change.parameter} has ranks {inner} and {outer}")
        shapes[Site(change.parameter, change.transposed)] = (rows, columns)
    if layout.keys() != expected:
        raise ValueError("it holds tensors of no change")
    if len({site.parameter for site in shapes}) != len(facts.sites):
        raise ValueError("a parameter is changed twice")
    return shapes
