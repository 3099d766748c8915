"""Patch files: write them, and check their facts and shapes before reading their tensors."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmedit.errors import ArtifactError, checks_kinds
from lmedit.guards.results import why_not_storable
from lmedit.storage.json_files import check_json
from lmedit.storage.ours import check_place
from lmedit.storage.tensors import PATCH, load_tensors, read_facts, save_tensors
from lmedit.types import DELTAS, Dense, LowRank, Site, Update, first_complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from lmedit.storage.tensors import Layout


NUMBERS = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""The number types of a patch, as safetensors names them."""
CARRY = "carry."
"""The names of `Update.carry` begin with this in a patch file."""


class _Known(BaseModel):
    """A model with these keys and types; it also accepts other keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class ChangedParameter(_Known):
    """One changed parameter, and the kind of its change."""

    parameter: str
    transposed: bool
    delta: Literal["low_rank", "dense"]
    index: int | None = None
    """The expert, if the parameter holds a matrix for each expert."""

    @property
    def site(self) -> Site:
        """The changed matrix."""
        return Site(self.parameter, self.transposed, self.index)


class Base(_Known):
    """The model that the edit was made on: `lmedit.edits.ledger.base_of`."""

    name: str | None = None
    digest: str | None = None
    revision: str | None = None
    touched: str | None = None
    parts: dict[str, str] = Field(default_factory=dict)
    """The parts of the model that the user named."""


class Answers(_Known):
    """Probabilities of the new answer, and of the old answer if it is known."""

    target_new: float
    target_true: float | None = None


class Metrics(_Known):
    """The measurements from the time when the edit was made."""

    before: Answers
    after: Answers
    survives: float | None = None
    """The share of the change that survives rounding to half precision."""
    number_type: str | None = None


class Facts(_Known):
    """All values of a patch besides its tensors."""

    sites: list[ChangedParameter]
    notes: dict[str, Any]
    request: dict[str, Any] = Field(default_factory=dict)
    requests: list[dict[str, Any]] = Field(default_factory=list)
    """The facts of a joint edit of several."""
    carried: list[str] = Field(default_factory=list)
    """The ids of the earlier edits whose carry the method used."""
    prepared_from: dict[str, Any] = Field(default_factory=dict)
    """The options that the carry belongs to."""
    options: dict[str, Any] = Field(default_factory=dict)
    model: Base = Base()
    metrics: Metrics | None = None


def shapes_of(facts: Facts, layout: Layout) -> dict[Site, tuple[int, int]]:
    """(d_out, d_in) of every change, from the *layout* of the file's tensors alone.

    Raises `ValueError` if the tensors do not belong to the changes, or if a rank is above
    d_out + d_in. No change needs a rank above the smaller of the two.
    """
    shapes: dict[Site, tuple[int, int]] = {}
    expected = set()
    for number, change in enumerate(facts.sites):
        names = [f"{number}.{each.name}" for each in fields(DELTAS[change.delta])]
        expected |= set(names)
        found = [layout[name] for name in names if name in layout]
        if len(found) < len(names):
            raise ValueError(f"the change of {change.parameter} lacks a tensor")
        if not all(kind in NUMBERS.values() and len(shape) == 2 for kind, shape in found):
            raise ValueError(f"the change of {change.parameter} is not a matrix of numbers")
        (rows, inner), (outer, columns) = found[0][1], found[-1][1]
        if len(found) == 2 and not inner == outer <= rows + columns:
            raise ValueError(f"the change of {change.parameter} has ranks {inner} and {outer}")
        shapes[change.site] = (rows, columns)
    carried = {name for name in layout if name.startswith(CARRY)}
    if not all(layout[name][0] in NUMBERS.values() for name in carried):
        raise ValueError("its carried values are not numbers")
    if layout.keys() - carried != expected:
        raise ValueError("it holds tensors that belong to no change")
    if len({site.name for site in shapes}) != len(facts.sites):
        raise ValueError("it changes a parameter twice")
    return shapes


@checks_kinds
def save_patch(
    path: str | Path, update: Update, facts: Mapping[str, Any], *, result: bool = False
) -> None:
    """Write *update* as a patch file with its *facts* (JSON).

    *result* tells that a command announces the file (`atomic.write_result`).
    Raises `ArtifactError` if the known facts do not have the types of `Facts`.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    sites = []
    for number, (site, delta) in enumerate(sorted(update.deltas.items())):
        kind = next(kind for kind, cls in DELTAS.items() if isinstance(delta, cls))
        change = {"parameter": site.parameter, "transposed": site.transposed, "delta": kind}
        sites.append(change if site.index is None else change | {"index": site.index})
        tensors |= {f"{number}.{name}": tensor for name, tensor in delta.tensors().items()}
    tensors |= {f"{CARRY}{name}": tensor for name, tensor in update.carry.items()}
    told = {**facts, "sites": sites, "notes": dict(update.notes)}
    _check_readable(path, told, tensors)
    check_place(path)
    save_tensors(path, PATCH, tensors, told, result=result)


def _check_readable(path: Path, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise `ArtifactError` if `load_patch` would refuse the file."""
    if not told["sites"]:
        raise ArtifactError(f"{path}: the edit changes nothing; try another fact or other options")
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        for name, tensor in tensors.items():
            if why := why_not_storable(tensor):
                raise ValueError(f"{name} is {why}")
            layout[name] = (NUMBERS[tensor.dtype], tuple(tensor.shape))
        check_json(told)
        shapes_of(_validate(path, told), layout)
    except ValueError as error:
        raise ArtifactError(f"cannot write {path}: {error}; no patch can hold it") from error


def base_in(path: Path) -> Base:
    """What the patch *path* says about its base. Raises `ArtifactError` if it is not a patch."""
    return _validate(path, read_facts(path, PATCH)).model


@checks_kinds
def load_patch(
    path: str | Path,
    check: Callable[[Mapping[str, Any], Mapping[Site, tuple[int, int]]], None] | None = None,
) -> tuple[Update, dict[str, Any]]:
    """Read a patch file; return the update and its facts.

    Before a tensor is read, *check* receives the facts and the shape (d_out, d_in) of every change;
    it raises `ArtifactError`. So does this function if the file is damaged or is not a patch.
    """
    path = Path(path)

    def expect(facts: Any, layout: Layout) -> None:
        shapes = shapes_of(_validate(path, facts), layout)
        if check:
            check(facts, shapes)

    tensors, facts = load_tensors(path, PATCH, expect)
    deltas: dict[Site, LowRank | Dense] = {}
    for number, site in enumerate(facts.pop("sites")):
        parts = {
            name.partition(".")[2]: tensor.clone()  # not a view of the file, which may change
            for name, tensor in tensors.items()
            if name.startswith(f"{number}.")
        }
        where = Site(site["parameter"], site["transposed"], site.get("index"))
        deltas[where] = DELTAS[site["delta"]](**parts)
    carry = {
        name.removeprefix(CARRY): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(CARRY)
    }
    return Update(deltas, facts.pop("notes"), carry), facts


def _validate(path: Path, facts: Any) -> Facts:
    try:
        return Facts.model_validate(facts)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_complaint(error)}; make the patch again") from None
