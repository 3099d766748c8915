"""Tests for the laws of `hookspecs.py`; `EditorContract` and `lmedit check` run them.

A law that does not hold raises `LawBrokenError` with the reason. A law that cannot be tested,
because another law is broken, raises `NotTriedError`.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lmedit.errors import LmeditError
from lmedit.guards.hooks import last_line
from lmedit.guards.untouched import left_behind, marks_of, put_back
from lmedit.pipeline import Editor
from lmedit.types import Request, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmedit.guards.untouched import Marks
    from lmedit.models import Lm
    from lmedit.options import Options
    from lmedit.registry import LoadedMethod
    from lmedit.types import Location, Prepared, Site

REQUEST = Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")
OTHER = Request(prompt="{} came down by", subject="A small boat", target_new="the old river")


class LawBrokenError(AssertionError):
    """A law does not hold; the message tells what was found."""


class NotTriedError(Exception):
    """A law cannot be tested; the message tells why."""


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


def law_1(trial: Trial) -> None:
    """The method has the name of its entry point, and every option has a default."""
    name = trial.loaded.method.name
    _require(
        trial.name in {None, name},
        f"it calls itself {name!r}, but its entry point is {trial.name!r}",
    )
    trial.loaded.method.options()


def law_2(trial: Trial) -> None:
    """Prepare, locate, probe and compute do not change weights, flags, modes or random state."""
    with half_with_gradients(trial.lm):
        before = State.of(trial.lm)
        location, _ = trial.raw_update()
        trial.loaded.manager.hook.edit_probe(location=location, **trial.arguments)
        left = before.differs_from(State.of(trial.lm))
        _require(not left, f"it left behind: {', '.join(left)}")


def law_3(trial: Trial) -> None:
    """Located sites are parameters of the model."""
    location = trial.loaded.manager.hook.edit_locate(**trial.arguments)
    _require(bool(location.sites), "it located no site")
    for site in _unknown_sites(trial.lm, location):
        raise LawBrokenError(f"{site.parameter!r} is not a parameter")


def law_4(trial: Trial) -> None:
    """Every delta belongs to a located site, has its shape, and is finite."""
    location, update = trial.raw_update()
    _require(bool(update.deltas), "the update changes nothing")
    for reason in _misfits(trial.lm, location, update):
        raise LawBrokenError(reason)


def law_5(trial: Trial) -> None:
    """The same arguments and seed give the same update, to the bit."""
    updates = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            updates.append(trial.raw_update()[1])
    first, second = updates
    _require(set(first.deltas) == set(second.deltas), "it changed other sites in the second run")
    for site, delta in first.deltas.items():
        for name, tensor in delta.tensors().items():
            same = torch.equal(tensor, second.deltas[site].tensors()[name])
            _require(same, f"{name} of {site.parameter!r} differs in the second run")


def law_6(trial: Trial) -> None:
    """Apply and then revert restores the weights to the bit, also after an error in between."""
    lm, hook = trial.lm, trial.loaded.manager.hook
    location, update = trial.raw_update()
    if _unknown_sites(lm, location) or _misfits(lm, location, update):
        raise NotTriedError("the update breaks law 3 or 4, so it cannot be applied")
    before = lm.weights_digest()
    applied = hook.edit_apply(lm=lm, update=update)
    _require(lm.weights_digest() != before, "apply changed nothing")
    _require(hook.edit_revert(lm=lm, applied=applied) is True, "revert did not return True")
    _require(lm.weights_digest() == before, "revert did not restore the weights")
    try:
        with Editor(trial.loaded, lm, trial.options, trial.prepared).applied(update):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    _require(lm.weights_digest() == before, "an interrupted edit was not reverted")


def law_7(trial: Trial) -> None:
    """Updates computed together equal updates computed alone, up to rounding."""
    hook = trial.loaded.manager.hook
    requests = [trial.request, trial.other, trial.request]
    of = [{**trial.arguments, "request": request} for request in requests]
    locations = [hook.edit_locate(**arguments) for arguments in of]
    shared = {name: trial.arguments[name] for name in ("lm", "options", "prepared")}
    found = hook.edit_compute_many(requests=requests, locations=locations, **shared)
    if found is None:
        return
    _require(
        len(found) == len(requests),
        f"it returned {len(found)} updates for {len(requests)} requests",
    )
    for arguments, location, update in zip(of, locations, found, strict=True):
        alone = hook.edit_compute(location=location, **arguments)
        subject = arguments["request"].subject
        _require(
            _close(update, alone), f"the update for {subject!r} differs when computed together"
        )


LAWS = (law_1, law_2, law_3, law_4, law_5, law_6, law_7)


@dataclass(frozen=True)
class Verdict:
    """The result of testing one law."""

    law: int
    says: str
    state: Literal["pass", "fail", "not tried"]
    reason: str = ""


def verdicts(trial: Trial) -> Iterator[Verdict]:
    """Test all laws in turn, each on the unchanged model. A method may raise any exception."""
    lm = trial.lm
    base, marks = lm.digest, marks_of(lm.model)
    whole = True
    for number, law in enumerate(LAWS, 1):
        verdict = partial(Verdict, number, str(law.__doc__))
        if not whole:
            yield verdict("not tried", "the model was changed and cannot be loaded again")
            continue
        try:
            law(trial)
            yield verdict("pass")
        except NotTriedError as why:
            yield verdict("not tried", str(why))
        except (LawBrokenError, LmeditError) as error:
            yield verdict("fail", str(error))
        except Exception as error:  # noqa: BLE001  (a wrong result of a hook may raise anything)
            yield verdict("fail", last_line(error))
        put_back(lm.model, marks)
        if lm.weights_digest() != base:
            whole = lm.renew()
            marks = marks_of(lm.model)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise LawBrokenError(reason)


def _unknown_sites(lm: Lm, location: Location) -> list[Site]:
    """The sites that are not parameters of the model."""
    return [site for site in location.sites if site.parameter not in lm.parameters]


def _misfits(lm: Lm, location: Location, update: Update) -> list[str]:
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


def _close(one: Update, other: Update) -> bool:
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


@contextmanager
def half_with_gradients(lm: Lm) -> Iterator[None]:
    """Ask for gradients of every second parameter in the block, to notice changed flags."""
    before = {name: p.requires_grad for name, p in lm.model.named_parameters()}
    for parameter in list(lm.model.parameters())[::2]:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in lm.model.named_parameters():
            parameter.requires_grad_(before.get(name, False))


@dataclass(frozen=True)
class State:
    """Everything that law 2 protects."""

    weights: str
    buffers: dict[str, Any]
    marks: Marks
    random: dict[str, Any]

    @classmethod
    def of(cls, lm: Lm) -> State:
        """The present state of *lm* and of the global random generators."""
        return cls(
            lm.weights_digest(),
            {name: buffer.tolist() for name, buffer in lm.model.named_buffers()},
            marks_of(lm.model),
            {
                "torch": torch.get_rng_state().tolist(),
                "python": random.getstate(),
                "numpy": str(np.random.get_state()),
            },
        )

    def differs_from(self, after: State) -> list[str]:
        """Describe the differences between the two states, in words."""
        left = left_behind(self.marks, after.marks)
        if self.weights != after.weights:
            left.append("changed weights")
        if self.buffers != after.buffers and not any("buffers" in each for each in left):
            left.append("changed buffers")
        changed = [name for name, state in self.random.items() if state != after.random[name]]
        return [*left, *(f"a changed random state of {name}" for name in changed)]
