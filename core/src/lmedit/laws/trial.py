"""A trial of the laws: a method, a model and requests; and the errors for a broken law."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lmedit.guards.hooks import implements
from lmedit.types import Request, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Location, Prepared, Site

REQUEST = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
OTHER = Request(prompt="{} came down by", subject="A small boat", target_new="the old river")
THIRD = Request(prompt="At night {} runs to", subject="the river", target_new="a home")


class LawBrokenError(AssertionError):
    """A law does not hold; the message describes the difference."""


class NotTriedError(Exception):
    """A law cannot be tested; the message gives the reason."""


@dataclass(frozen=True)
class Trial:
    """A method, the model for the tests, and the requests to edit."""

    loaded: LoadedMethod
    lm: Lm
    options: Options
    prepare: Callable[[], Prepared]
    """Calls `edit_prepare`; it is called once, when the preparation is first needed."""
    name: str | None = None
    """The name of the entry point; None if there is no entry point."""
    request: Request = REQUEST
    other: Request = OTHER
    third: Request = THIRD

    @cached_property
    def prepared(self) -> Prepared:
        """The result of `edit_prepare`."""
        return self.prepare()

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of every hook that computes."""
        return {
            "lm": self.lm,
            "request": self.request,
            "options": self.options,
            "prepared": self.prepared,
        }

    def raw_update(self) -> tuple[Any, Update]:
        """Location and update from the hooks, without the pipeline's checks."""
        hook, arguments = self.loaded.manager.hook, self.arguments
        location = hook.edit_locate(**arguments)
        return location, hook.edit_compute(location=location, **arguments)

    @property
    def joins(self) -> bool:
        """Whether the method has the hook `edit_compute_joint`; the laws 8 to 14 are about it."""
        return implements(self.loaded.manager, "edit_compute_joint")

    def raw_joint(
        self, requests: Sequence[Request], carried: Sequence[Mapping[str, Tensor]] = ()
    ) -> tuple[list[Any], Update]:
        """Locations and the joint update from the hooks, without the pipeline's checks."""
        hook = self.loaded.manager.hook
        shared = {"lm": self.lm, "options": self.options, "prepared": self.prepared}
        locations = [hook.edit_locate(request=request, **shared) for request in requests]
        update = hook.edit_compute_joint(
            requests=requests, locations=locations, carried=carried, **shared
        )
        return locations, update


def require(holds: bool, reason: str) -> None:
    """Raise `LawBrokenError` with *reason* unless *holds*."""
    if not holds:
        raise LawBrokenError(reason)


def unknown_sites(lm: Lm, location: Location) -> list[Site]:
    """The sites that are not parameters of the model."""
    return [site for site in location.sites if site.parameter not in lm.parameters]


def misfits(lm: Lm, location: Location, update: Update) -> list[str]:
    """The ways in which law 4 is broken; empty if the law holds."""
    found = []
    for site, delta in update.deltas.items():
        if site not in location.sites:
            found.append(f"{site.parameter!r} is changed, but it was not located")
        elif delta.dense().shape != lm.weight(site).shape:
            shapes = f"{tuple(delta.shape)}, but the matrix is {tuple(lm.weight(site).shape)}"
            found.append(f"the delta of {site.parameter!r} is {shapes}")
        elif not bool(delta.dense().isfinite().all()):
            found.append(f"the delta of {site.parameter!r} is not finite")
    return found


def close(one: Update, other: Update) -> bool:
    """Whether two updates differ only by rounding: 1e-6 relative in double precision, else 1e-2."""
    if set(one.deltas) != set(other.deltas):
        return False
    for site, delta in one.deltas.items():
        expected = other.deltas[site].dense()
        double = expected.dtype == torch.float64
        apart = (delta.dense() - expected).norm()
        if not bool(apart <= (1e-6 if double else 1e-2) * expected.norm()):
            return False
    return True
