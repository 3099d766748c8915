"""Which differences between a model folder and its base do the edits of its ledger explain?

The files are read tensor by tensor; no model is loaded. The edits of a tensor are added to the
base's values in the ledger's order, as `lmedit apply` adds them. The result is compared with the
folder's values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from lmedit.edits.ledger import SHORT, update_digest
from lmedit.edits.ledger_file import read_head
from lmedit.edits.model_folders import EDITS, ORIGINALS
from lmedit.edits.patches import load_patch
from lmedit.edits.remainders import Remainder, measure_remainder
from lmedit.errors import ArtifactError
from lmedit.models import LEDGER
from lmedit.models.families import as_matrix
from lmedit.storage.tensors import PATCH, read_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from lmedit.models.stored import StoredWeights
    from lmedit.types import Update

SAME, EXPLAINED, ROUNDED, RETYPED, UNEXPLAINED = (
    "same",
    "explained",
    "rounded",
    "retyped",
    "unexplained",
)
"""The states of a tensor that both models have: equal; equal to base plus edits, to the bit or up
to rounding; equal in another number type; none of these."""


@dataclass(frozen=True)
class Found:
    """A tensor of both models, and how its values differ."""

    name: str
    state: str
    shape: tuple[int, ...]
    base_type: str
    folder_type: str
    edits: tuple[str, ...] = ()
    """The ids of the ledger's edits of this tensor."""
    remainder: Remainder | None = None
    """The part of the difference that no edit explains; None if it is explained or not finite."""
    why: str = ""


class LedgerOf:
    """The ledger of a model folder, read without the model; empty for other folders."""

    def __init__(self, folder: Path) -> None:
        """Raises `ArtifactError` if the ledger's own file is damaged."""
        self.folder = folder / EDITS
        path = folder / LEDGER
        self.head: Mapping[str, Any] = read_head(path) if path.is_file() else {}
        self.problems: list[str] = []
        self.edits_of: dict[str, list[str]] = {}
        """The ids of the edits of each parameter, in the ledger's order."""
        self.parts: dict[str, list[Tensor]] = {}
        """The changes of tensors that are a part of a parameter (`divide`)."""
        for edit in self.head.get("edits", []):
            try:
                sites = read_facts(self._path(edit["id"]), PATCH)["sites"]
                for name in dict.fromkeys(site["parameter"] for site in sites):
                    self.edits_of.setdefault(name, []).append(edit["id"])
            except (ArtifactError, KeyError, TypeError) as error:
                self.problems.append(f"edit {edit['id'][:SHORT]}: {error}")

    def _path(self, identity: str) -> Path:
        return self.folder / f"{identity}.safetensors"

    def divide(self, names: Iterable[str], model: PreTrainedModel) -> None:
        """Replace the edits of the parameters *names* by those of the tensors in files.

        In files, each expert has a tensor of its own; *model* holds one for all experts. Its
        values are not read. Names that the model lacks stay.
        """
        from transformers.core_model_loading import revert_weight_conversion

        shapes = {name: each.shape for name, each in model.named_parameters()}
        for name in [name for name in names if name in shapes]:
            for update in self.updates(name):
                changes = [(s, d.dense()) for s, d in update.deltas.items() if s.parameter == name]
                whole = torch.zeros(shapes[name], dtype=changes[0][1].dtype)
                for site, change in changes:
                    as_matrix(whole, site).add_(change)
                for stored, part in revert_weight_conversion(model, {name: whole}).items():
                    if part.any():
                        self.edits_of.setdefault(stored, []).append(update_digest(update))
                        self.parts.setdefault(stored, []).append(part)
            del self.edits_of[name]

    def updates(self, name: str) -> Iterator[Update]:
        """The edits of the parameter *name*, read one at a time. A damaged one is a problem."""
        for identity in self.edits_of.get(name, []):
            path = self._path(identity)
            try:
                update, _ = load_patch(path)
            except ArtifactError as error:
                self._tell(f"edit {identity[:SHORT]}: {error}")
                continue
            if update_digest(update) == identity:
                yield update
            else:
                self._tell(f"edit {identity[:SHORT]}: {path} holds another edit")

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    @cached_property
    def number_type(self) -> torch.dtype | None:
        """The number type in which the edits were added; None without a ledger."""
        name = self.head.get("number_type")
        found = getattr(torch, str(name), None)
        return found if isinstance(found, torch.dtype) else None

    def originals(self) -> Iterator[tuple[str, Tensor]]:
        """The base's values that `lmedit revert` would restore: site names and tensors."""
        path = self.folder / ORIGINALS
        if not self.head.get("edits"):
            return
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except Exception as error:  # noqa: BLE001  (safetensors has errors of several kinds)
            self._tell(f"{path} is damaged ({error}); lmedit revert cannot use it")


def add_edits_of(base: Tensor, name: str, ledger: LedgerOf, dtype: torch.dtype) -> Tensor:
    """*base* with the edits that *ledger* has of the parameter *name*, added in *dtype*."""
    values = base.to(ledger.number_type or dtype).clone()
    for part in ledger.parts.get(name, ()):
        _add(values, part)
    if name in ledger.parts:
        return values.to(dtype)
    for update in ledger.updates(name):
        for site, delta in update.deltas.items():
            if site.parameter != name:
                continue
            _add(as_matrix(values, site), delta.dense())
    return values.to(dtype)


def _add(values: Tensor, change: Tensor) -> None:
    """Add *change* to *values* in place, as `lmedit apply` does. Raises `ArtifactError`."""
    if values.shape != change.shape:
        raise ArtifactError(f"its edit is {tuple(change.shape)}, it is {tuple(values.shape)}")
    finer = torch.promote_types(values.dtype, change.dtype)
    finer = torch.promote_types(finer, torch.float32)
    values.copy_((values.to(finer) + change.to(finer)).to(values.dtype))


@torch.no_grad()
def compare_tensor(
    name: str, other: str, folder: StoredWeights, base: StoredWeights, ledger: LedgerOf
) -> Found:
    """Compare the tensor *name* of *folder* with *other*, its name in *base*."""
    was, now = base.tensor(other), folder.tensor(name)
    edits = tuple(ledger.edits_of.get(name, ()))
    types = (_type(was), _type(now))

    def finding(state: str, remainder: Remainder | None = None, why: str = "") -> Found:
        return Found(name, state, tuple(now.shape), *types, edits, remainder, why)

    if was.shape != now.shape:
        what = f"it is {_sides(now)}, in the base {_sides(was)}"
        return finding(UNEXPLAINED, why=what)
    plain = was.to(now.dtype)
    if not edits and _equal(plain, now):
        return finding(SAME if was.dtype == now.dtype else RETYPED)
    wanted = plain
    try:
        wanted = add_edits_of(was, name, ledger, now.dtype) if edits else plain
    except ArtifactError as error:
        return finding(UNEXPLAINED, why=str(error))
    if _equal(wanted, now):
        return finding(EXPLAINED)
    if not now.is_floating_point() or not now.float().isfinite().all():
        return finding(UNEXPLAINED, why="its values are not finite numbers of floating point")
    return _rest(finding, now, wanted, plain, was)


def _rest(finding: Any, now: Tensor, wanted: Tensor, plain: Tensor, was: Tensor) -> Found:
    """The state of a tensor *now* that is not *wanted* to the bit."""
    wide = torch.float64 if now.dtype == torch.float64 else torch.float32
    rest, size = now.to(wide) - wanted.to(wide), torch.maximum(wanted.abs(), plain.abs()).to(wide)
    eps = max(torch.finfo(kind).eps for kind in (was.dtype, now.dtype) if kind.is_floating_point)
    close = bool((rest.abs() <= torch.finfo(now.dtype).eps * size).all())
    remainder = measure_remainder(rest, was.to(wide), eps)
    added_up = wanted is not plain or was.dtype != now.dtype
    if close and added_up and not remainder.rank:  # another library rounds sums in another way
        return finding(ROUNDED)
    why = "the edits of the ledger are not in it" if _equal(plain, now) else ""
    return finding(UNEXPLAINED, remainder, why)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same values; a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.element_size() == 1:
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    same = one == other
    return bool((same | ((one != one) & (other != other))).all())  # noqa: PLR0124


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sides(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
