"""Check the results of hooks, by the laws that can be checked during the work."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from torch import Tensor

from lmedit.errors import BrokenPluginError, RequestError, UnsoundEditWarning
from lmedit.types import Dense, Location, LowRank, Probed, Site, Update

if TYPE_CHECKING:
    from lmedit.models import Lm


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
        sites = location.sites
        if not isinstance(sites, tuple) or not all(isinstance(site, Site) for site in sites):
            self.refuse(f"located {sites!r}, which is not a tuple of sites")
        parameters = self.lm.parameters
        for site in sites:
            if site.parameter not in parameters:
                self.refuse(f"located {site.name!r}, which is not a parameter of {self.lm.name}")
        return location

    def probe(self, found: Probed) -> Probed:
        """*found*, if its values are JSON."""
        self.kind(found, Probed, "edit_probe")
        self._json(found.values, "edit_probe", "values")
        return found

    def update(self, update: Update, location: Location, hook: str) -> Update:
        """*update*, if its deltas belong to located sites, fit, and are finite (law 4)."""
        self.kind(update, Update, hook)
        self._json(update.notes, hook, "notes")
        for site, delta in update.deltas.items():
            if site not in location.sites:
                self.refuse(f"changes {site.name!r}, which it did not locate")
            change, shape = self._dense(site, delta), tuple(self.lm.weight(site).shape)
            if tuple(change.shape) != shape:
                found = tuple(change.shape)
                self.refuse(f"delta of {site.name!r} is {found}, but the matrix is {shape}")
            if not bool(change.isfinite().all()):
                raise RequestError(
                    f"{self.name}: the update of {site.name!r} is not finite; the edit "
                    "was dropped; try other options"
                )
        self._carry(update.carry, hook)
        if reason := update.notes.get("unsound"):
            what = f"{self.name}: the edit is unsound: {reason}"
            warnings.warn(what, UnsoundEditWarning, stacklevel=4)
        return update

    def _carry(self, carry: object, hook: str) -> None:
        """Refuse a *carry* that is not a mapping from names to finite tensors (law 11)."""
        if not isinstance(carry, Mapping):
            self.refuse(f"{hook} must return a mapping as carry, not {type(carry).__name__}")
        for name, tensor in carry.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                self.refuse(f"{hook} must carry tensors under names; {name!r} is not one")
            if not bool(tensor.isfinite().all()):
                self.refuse(f"{hook} carries {name!r}, which is not finite")

    def _dense(self, site: Site, delta: object) -> Tensor:
        """*delta* as a matrix, if it is one."""
        try:
            if isinstance(delta, LowRank | Dense) and (change := delta.dense()).dim() == 2:
                return change
        except (RuntimeError, AttributeError, TypeError):
            pass
        return self.refuse(f"delta of {site.name!r} is {delta!r:.80}, which is not a matrix")

    def kind(self, value: object, kind: type, hook: str) -> None:
        """Raise `BrokenPluginError` if *value*, the result of *hook*, is not a *kind*."""
        if not isinstance(value, kind):
            self.refuse(f"{hook} must return {kind.__name__}, not {type(value).__name__}")

    def _json(self, values: object, hook: str, what: str) -> None:
        try:
            json.dumps(dict(values))  # type: ignore[call-overload]
        except (TypeError, ValueError) as error:
            self.refuse(f"{hook} must return JSON values as {what} ({error})")

    def refuse(self, what: str) -> NoReturn:
        """Raise `BrokenPluginError`; *what* describes the method's act."""
        raise BrokenPluginError(f"{self.culprit}: {what}")
