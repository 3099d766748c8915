"""Check the results of hooks, by the laws that can be checked during the work.

What a patch file cannot hold, or `lmedit apply` would refuse, is refused here: before the edit is
measured and written.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from lmedit.charts import Bars, Heat, Lines
from lmedit.errors import BrokenPluginError, RequestError, UnsoundEditWarning
from lmedit.storage.json_files import check_json
from lmedit.types import Dense, Location, LowRank, Prepared, Probed, Site, Update

if TYPE_CHECKING:
    from lmedit.models import Lm

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The number types of deltas and carried values."""


def why_not_storable(tensor: object, kinds: tuple[torch.dtype, ...] | None = NUMBERS) -> str:
    """Why no file can hold *tensor*; empty if one can. *kinds* are the allowed number types."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "a sparse or nested tensor; return a dense one"
    if tensor.is_meta:
        return "a tensor without values (device meta)"
    if tensor.is_quantized or (kinds is not None and tensor.dtype not in kinds):
        return f"{str(tensor.dtype).removeprefix('torch.')} numbers; return float32 or finer"
    return ""


@dataclass(frozen=True)
class ResultChecks:
    """Checks the results of a method's hooks for a model; its errors name the method."""

    name: str
    culprit: str
    """The method and its distribution, as error messages name them."""
    lm: Lm

    def location(self, location: Location) -> Location:
        """*location*, if its sites are parameters (law 3) and its evidence is JSON."""
        self.kind(location, Location, "edit_locate")
        self._json(location.evidence, "edit_locate", "evidence")
        self._charts(location.charts, "edit_locate")
        if not isinstance(location.found, Mapping):
            self.refuse(f"edit_locate must return a mapping as found, not {_kind(location.found)}")
        sites = location.sites
        if not isinstance(sites, tuple) or not all(isinstance(site, Site) for site in sites):
            self.refuse(f"located {sites!r:.80}, which is not a tuple of sites")
        parameters = self.lm.parameters
        for site in sites:
            if site.parameter not in parameters:
                self.refuse(f"located {site.name!r}, which is not a parameter of {self.lm.name}")
        return location

    def probe(self, found: Probed) -> Probed:
        """*found*, if its values are JSON."""
        self.kind(found, Probed, "edit_probe")
        self._json(found.values, "edit_probe", "values")
        self._charts(found.charts, "edit_probe")
        return found

    def check_prepared(self, prepared: Prepared) -> Prepared:
        """*prepared*, if a file can hold its tensors and its facts."""
        self.kind(prepared, Prepared, "edit_prepare")
        self._json(prepared.facts, "edit_prepare", "facts")
        self._tensors(prepared.tensors, "edit_prepare", "tensors", None)
        return prepared

    def update(self, update: Update, location: Location, hook: str) -> Update:
        """*update*, if its deltas belong to located sites, fit, and are finite (law 4)."""
        self.kind(update, Update, hook)
        self._json(update.notes, hook, "notes")
        if not isinstance(update.deltas, Mapping):
            self.refuse(f"{hook} must return a mapping as deltas, not {_kind(update.deltas)}")
        for site, delta in update.deltas.items():
            if site not in location.sites:
                self.refuse(f"changes {_name_of(site)}, which it did not locate")
            change, shape = self._dense(site, delta), tuple(self.lm.weight(site).shape)
            if tuple(change.shape) != shape:
                found = tuple(change.shape)
                self.refuse(f"delta of {site.name!r} is {found}, but the matrix is {shape}")
            self._finite(site, change)
        if len({site.name for site in update.deltas}) != len(update.deltas):
            self.refuse(f"{hook} changes a parameter in two layouts")
        self._tensors(update.carry, hook, "carry", NUMBERS)
        for name, tensor in update.carry.items():
            if not bool(tensor.isfinite().all()):
                self.refuse(f"{hook} carries {name!r}, which is not finite")
        if reason := update.notes.get("unsound"):
            what = f"{self.name}: the edit is unsound: {reason}"
            warnings.warn(what, UnsoundEditWarning, stacklevel=4)
        return _drop_gradients(update)

    def _finite(self, site: Site, change: Tensor) -> None:
        """Raise `RequestError` if *change* is not finite, or too large for the model's numbers."""
        if not bool(change.isfinite().all()):
            raise RequestError(
                f"{self.name}: the update of {site.name!r} is not finite; the edit "
                "was dropped; try other options"
            )
        if not bool(self.lm.weight_plus(site, change).isfinite().all()):
            raise RequestError(
                f"{self.name}: the update of {site.name!r} is too large for {self.lm.dtype_name}; "
                "the edit was dropped; try other options"
            )

    def _tensors(
        self, tensors: object, hook: str, what: str, kinds: tuple[torch.dtype, ...] | None
    ) -> None:
        """Refuse *tensors* that are not a mapping from names to tensors that a file can hold."""
        if not isinstance(tensors, Mapping):
            self.refuse(f"{hook} must return a mapping as {what}, not {_kind(tensors)}")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not name.isprintable():
                self.refuse(f"{hook} must carry tensors under names; {name!r:.80} is not one")
            if why := why_not_storable(tensor, kinds):
                self.refuse(f"{hook} returns {what} {name!r} as {why}")

    def _dense(self, site: Site, delta: object) -> Tensor:
        """*delta* as a matrix, if it is one that a patch can hold and `apply` accepts."""
        if not isinstance(delta, LowRank | Dense):
            return self.refuse(f"delta of {site.name!r} is {delta!r:.80}, which is not a matrix")
        for part in delta.tensors().values():
            if why := why_not_storable(part):
                self.refuse(f"delta of {site.name!r} has {why}")
        shapes = {name: tuple(part.shape) for name, part in delta.tensors().items()}
        if not all(len(shape) == 2 for shape in shapes.values()):
            return self.refuse(f"delta of {site.name!r} has {shapes}, which is not a matrix")
        if isinstance(delta, LowRank):
            rank, most = delta.left.shape[1], sum(self.lm.weight(site).shape)
            if rank > most:
                self.refuse(f"delta of {site.name!r} has rank {rank}, above d_out + d_in = {most}")
        try:
            return delta.dense()
        except RuntimeError:
            return self.refuse(f"delta of {site.name!r} has {shapes}, which is not a matrix")

    def _charts(self, charts: object, hook: str) -> None:
        if not isinstance(charts, tuple | list) or not all(
            isinstance(chart, Bars | Lines | Heat) for chart in charts
        ):
            self.refuse(f"{hook} must return charts of lmedit.charts, not {charts!r:.80}")

    def kind(self, value: object, kind: type, hook: str) -> None:
        """Raise `BrokenPluginError` if *value*, the result of *hook*, is not a *kind*."""
        if not isinstance(value, kind):
            self.refuse(f"{hook} must return {kind.__name__}, not {_kind(value)}")

    def _json(self, values: object, hook: str, what: str) -> None:
        if not isinstance(values, Mapping):
            self.refuse(f"{hook} must return a mapping as {what}, not {_kind(values)}")
        try:
            check_json(dict(values))
        except ValueError as error:
            self.refuse(f"{hook} must return JSON values as {what} ({error})")

    def refuse(self, what: str) -> NoReturn:
        """Raise `BrokenPluginError`; *what* describes the method's act."""
        raise BrokenPluginError(f"{self.culprit}: {what}")


def _drop_gradients(update: Update) -> Update:
    """*update* with tensors that hold no graph of its computation."""

    def free(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in tensors.items()}

    deltas = [delta.tensors() for delta in update.deltas.values()]
    if not any(part.requires_grad for each in (*deltas, update.carry) for part in each.values()):
        return update
    freed = {site: type(delta)(**free(delta.tensors())) for site, delta in update.deltas.items()}
    return Update(freed, update.notes, free(update.carry))


def _kind(value: object) -> str:
    return type(value).__name__


def _name_of(site: object) -> str:
    return repr(site.name) if isinstance(site, Site) else f"{site!r:.80}"
