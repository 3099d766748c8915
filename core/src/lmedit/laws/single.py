"""The laws 1 to 7: of methods that compute one edit at a time."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmedit.guards.untouched import left_behind, note_state
from lmedit.laws.trial import LawBrokenError, NotTriedError, close, misfits, require, unknown_sites
from lmedit.pipeline import Editor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit.guards.untouched import ModelState
    from lmedit.laws.trial import Trial
    from lmedit.models import Lm


def law_1(trial: Trial) -> None:
    """The method has the name of its entry point, and every option has a default."""
    name = trial.loaded.method.name
    require(
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
        require(not left, f"it left behind: {', '.join(left)}")


def law_3(trial: Trial) -> None:
    """Located sites are parameters of the model."""
    location = trial.loaded.manager.hook.edit_locate(**trial.arguments)
    require(bool(location.sites), "it located no site")
    for site in unknown_sites(trial.lm, location):
        raise LawBrokenError(f"{site.parameter!r} is not a parameter")


def law_4(trial: Trial) -> None:
    """Every delta belongs to a located site, has its shape, and is finite."""
    location, update = trial.raw_update()
    require(bool(update.deltas), "the update changes nothing")
    for reason in misfits(trial.lm, location, update):
        raise LawBrokenError(reason)


def law_5(trial: Trial) -> None:
    """The same arguments and seed give the same update, to the bit."""
    updates = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            updates.append(trial.raw_update()[1])
    first, second = updates
    require(set(first.deltas) == set(second.deltas), "it changed other sites in the second run")
    for site, delta in first.deltas.items():
        for name, tensor in delta.tensors().items():
            same = torch.equal(tensor, second.deltas[site].tensors()[name])
            require(same, f"{name} of {site.parameter!r} differs in the second run")


def law_6(trial: Trial) -> None:
    """Apply and then revert restores the weights to the bit, also after an error in between."""
    lm, hook = trial.lm, trial.loaded.manager.hook
    location, update = trial.raw_update()
    if unknown_sites(lm, location) or misfits(lm, location, update):
        raise NotTriedError("the update breaks law 3 or 4, so it cannot be applied")
    before = lm.weights_digest()
    applied = hook.edit_apply(lm=lm, update=update)
    require(lm.weights_digest() != before, "apply changed nothing")
    require(hook.edit_revert(lm=lm, applied=applied) is True, "revert did not return True")
    require(lm.weights_digest() == before, "revert did not restore the weights")
    try:
        with Editor(trial.loaded, lm, trial.options, trial.prepared).applied(update):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    require(lm.weights_digest() == before, "an interrupted edit was not reverted")


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
    require(
        len(found) == len(requests),
        f"it returned {len(found)} updates for {len(requests)} requests",
    )
    for arguments, location, update in zip(of, locations, found, strict=True):
        alone = hook.edit_compute(location=location, **arguments)
        subject = arguments["request"].subject
        require(close(update, alone), f"the update for {subject!r} differs when computed together")


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
    marks: ModelState
    random: dict[str, Any]

    @classmethod
    def of(cls, lm: Lm) -> State:
        """The present state of *lm* and of the global random generators."""
        return cls(
            lm.weights_digest(),
            {name: buffer.tolist() for name, buffer in lm.model.named_buffers()},
            note_state(lm.model),
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
