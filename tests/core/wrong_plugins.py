"""Plugins that break one law each, and the contract run on them; `test_testing.py` runs this.

Not collected by itself: the tests of a class named `TestLaw2...` must fail for law 2 alone.
"""

from __future__ import annotations

import random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmedit import (
    Applied,
    Dense,
    Lm,
    Location,
    LowRank,
    Method,
    Options,
    Prepared,
    Probed,
    Request,
    Site,
    Update,
    hookimpl,
)
from lmedit.testing import EditorContract

if TYPE_CHECKING:
    from collections.abc import Callable


class NudgeOptions(Options):
    layer: int = 0
    step: float = 0.1


class Nudge:
    """The design's whole plugin, as a class: the wrong ones change one hook of it."""

    @staticmethod
    @hookimpl
    def edit_describe() -> Method:
        return Method("nudge", "no paper", NudgeOptions)

    @staticmethod
    @hookimpl
    def edit_locate(lm: Lm, options: NudgeOptions) -> Location:
        return Location((lm.mlp_out(options.layer),))

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location, options: NudgeOptions) -> Update:
        site = location.sites[0]
        return Update({site: Dense(options.step * torch.ones_like(lm.weight(site)))})


def of_options(base: type, options: type[Options]) -> type:
    """The method *base* with other options."""

    class WithOptions(base):  # type: ignore[misc]
        @staticmethod
        @hookimpl
        def edit_describe() -> Method:
            return Method("nudge", "no paper", options)

    return WithOptions


class TestGood(EditorContract):
    method, plugin = "nudge", Nudge


class TestGoodWithoutAName(EditorContract):
    plugin = Nudge


class TestGoodWithOptions(EditorContract):
    method, plugin = "nudge", Nudge
    options = MappingProxyType({"layer": 3, "step": "0.5"})


class RankOne(Nudge):
    """A good one that draws, but from a generator of its own, seeded by the options."""

    @staticmethod
    @hookimpl
    def edit_compute(
        lm: Lm, request: Request, location: Location, options: NudgeOptions, prepared: Prepared
    ) -> Update:
        draw = torch.Generator().manual_seed(options.seed)
        site = location.sites[0]
        rows, columns = lm.weight(site).shape
        left = torch.randn(rows, 1, generator=draw)
        return Update({site: LowRank(left, torch.randn(1, columns, generator=draw))})


class TestGoodRankOne(EditorContract):
    method, plugin = "nudge", RankOne


class Together(Nudge):
    """A good one that works out several requests at once."""

    @staticmethod
    @hookimpl
    def edit_compute_many(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions
    ) -> list[Update]:
        return [Nudge.edit_compute(lm, location, options) for location in locations]


class TestGoodTogether(EditorContract):
    method, plugin = "nudge", Together


# ---- law 1: the name is the entry point's, every option has a default


class OtherName(Nudge):
    @staticmethod
    @hookimpl
    def edit_describe() -> Method:
        return Method("shove", "no paper", NudgeOptions)


class TestLaw1OtherName(EditorContract):
    method, plugin = "nudge", OtherName


# ---- law 2: prepare, locate, probe and compute leave no trace


def wrong_in_compute(deed: Any) -> type:
    """A nudge that does *deed* to the model while it computes."""

    class Wrong(Nudge):
        @staticmethod
        @hookimpl
        def edit_compute(lm: Lm, location: Location, options: NudgeOptions) -> Update:
            deed(lm)
            return Nudge.edit_compute(lm, location, options)

    return Wrong


def change_a_weight(lm: Lm) -> None:
    with torch.no_grad():
        lm.model.get_parameter("transformer.ln_f.bias")[3] += 1


def change_a_flag(lm: Lm) -> None:
    lm.model.get_parameter("transformer.ln_f.bias").requires_grad_(True)
    lm.model.get_parameter("transformer.wte.weight").requires_grad_(False)


def leave_a_gradient(lm: Lm) -> None:
    bias = lm.model.get_parameter("transformer.ln_f.bias")
    bias.grad = torch.zeros_like(bias)


def add_a_buffer(lm: Lm) -> None:
    lm.model.register_buffer("left_behind", torch.zeros(2), persistent=False)


def replace_a_module(lm: Lm) -> None:
    lm.model.transformer.drop = nn.Identity()


class WrongInLocate(Nudge):
    @staticmethod
    @hookimpl
    def edit_locate(lm: Lm, options: NudgeOptions) -> Location:
        change_a_weight(lm)
        return Nudge.edit_locate(lm, options)


class WrongInPrepare(Nudge):
    @staticmethod
    @hookimpl
    def edit_prepare(lm: Lm) -> Prepared:
        torch.rand(1)
        lm.model.train()
        return Prepared()


class WrongInProbe(Nudge):
    @staticmethod
    @hookimpl
    def edit_probe(lm: Lm) -> Probed:
        change_a_weight(lm)
        return Probed({})


class TestLaw2Probe(EditorContract):
    plugin = WrongInProbe


class TestLaw2Locate(EditorContract):
    method, plugin = "nudge", WrongInLocate


class TestLaw2Prepare(EditorContract):
    method, plugin = "nudge", WrongInPrepare


class TestLaw2Weight(EditorContract):
    method, plugin = "nudge", wrong_in_compute(change_a_weight)


class TestLaw2Flag(EditorContract):
    method, plugin = "nudge", wrong_in_compute(change_a_flag)


class TestLaw2Gradient(EditorContract):
    method, plugin = "nudge", wrong_in_compute(leave_a_gradient)


class TestLaw2Mode(EditorContract):
    method, plugin = "nudge", wrong_in_compute(lambda lm: lm.block(1).train())


class TestLaw2Buffer(EditorContract):
    method, plugin = "nudge", wrong_in_compute(add_a_buffer)


class TestLaw2Module(EditorContract):
    method, plugin = "nudge", wrong_in_compute(replace_a_module)


class TestLaw2TorchRandom(EditorContract):
    method, plugin = "nudge", wrong_in_compute(lambda _: torch.rand(1))


class TestLaw2TorchSeed(EditorContract):
    method, plugin = "nudge", wrong_in_compute(lambda _: torch.manual_seed(0))


class TestLaw2PythonRandom(EditorContract):
    method, plugin = "nudge", wrong_in_compute(lambda _: random.random())


class TestLaw2NumpyRandom(EditorContract):
    method, plugin = "nudge", wrong_in_compute(lambda _: np.random.rand())


class TestLaw2ForwardHook(EditorContract):
    method, plugin = (
        "nudge",
        wrong_in_compute(lambda lm: lm.block(0).register_forward_hook(lambda *_: None)),
    )


class TestLaw2ForwardPreHook(EditorContract):
    method, plugin = (
        "nudge",
        wrong_in_compute(lambda lm: lm.block(0).register_forward_pre_hook(lambda *_: None)),
    )


class TestLaw2BackwardHook(EditorContract):
    method, plugin = (
        "nudge",
        wrong_in_compute(lambda lm: lm.block(0).register_full_backward_hook(lambda *_: None)),
    )


class TestLaw2Forward(EditorContract):
    method, plugin = (
        "nudge",
        wrong_in_compute(lambda lm: setattr(lm.block(0), "forward", lm.block(0).forward)),
    )


# ---- law 3: sites are parameters of the model


class Nowhere(Nudge):
    """Locates a module besides the matrix it edits."""

    @staticmethod
    @hookimpl
    def edit_locate(lm: Lm, options: NudgeOptions) -> Location:
        return Location((lm.mlp_out(options.layer), Site("transformer.h.1.mlp")))


class TestLaw3Nowhere(EditorContract):
    method, plugin = "nudge", Nowhere


# ---- law 4: every delta belongs to a located site, fits it, and is finite


class Elsewhere(Nudge):
    """Changes a second matrix that it did not locate."""

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        sites = (*location.sites, lm.mlp_out(2))
        return Update({site: Dense(torch.ones_like(lm.weight(site))) for site in sites})


class TooSmall(Nudge):
    """Gives one number for the whole matrix, which torch would spread over it."""

    @staticmethod
    @hookimpl
    def edit_compute(location: Location) -> Update:
        return Update({location.sites[0]: Dense(torch.ones(1, 1))})


class Infinite(Nudge):
    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        change = torch.ones_like(lm.weight(location.sites[0]))
        change[1, 2] = torch.inf
        return Update({location.sites[0]: Dense(change)})


class Overflowing(Nudge):
    """Both factors are finite, their product is not."""

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        rows, columns = lm.weight(location.sites[0]).shape
        left = torch.full((rows, 1), 1e200, dtype=torch.float64)
        right = torch.full((1, columns), 1e200, dtype=torch.float64)
        return Update({location.sites[0]: LowRank(left, right)})


class TestLaw4Elsewhere(EditorContract):
    method, plugin = "nudge", Elsewhere


class TestLaw4TooSmall(EditorContract):
    method, plugin = "nudge", TooSmall


class TestLaw4Infinite(EditorContract):
    method, plugin = "nudge", Infinite


class TestLaw4Overflowing(EditorContract):
    method, plugin = "nudge", Overflowing


# ---- law 5: same arguments, same update


class Counting(Nudge):
    """Keeps state between calls."""

    calls = 0

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        Counting.calls += 1
        site = location.sites[0]
        return Update({site: Dense(Counting.calls * torch.ones_like(lm.weight(site)))})


class Unseeded(Nudge):
    """Draws from a generator that the machine seeds."""

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        draw = random.SystemRandom()
        site = location.sites[0]
        return Update({site: Dense(draw.random() * torch.ones_like(lm.weight(site)))})


class TestLaw5Counting(EditorContract):
    method, plugin = "nudge", Counting


class TestLaw5Unseeded(EditorContract):
    method, plugin = "nudge", Unseeded


class HiddenDraw(Nudge):
    """Draws from the global generator and puts its state back, so that law 2 holds."""

    @staticmethod
    @hookimpl
    def edit_compute(lm: Lm, location: Location) -> Update:
        with torch.random.fork_rng():
            return Update({s: Dense(torch.randn_like(lm.weight(s))) for s in location.sites})


class TestLaw5HiddenDraw(EditorContract):
    method, plugin = "nudge", HiddenDraw


# ---- law 6: apply, then revert, is exact


class Subtracting(Nudge):
    """Reverts by subtraction: (w + d) - d != w."""

    @staticmethod
    @hookimpl
    def edit_apply(lm: Lm, update: Update) -> Applied:
        for site, delta in update.deltas.items():
            lm.add(site, delta.dense())
        return Applied({site: -delta.dense() for site, delta in update.deltas.items()})

    @staticmethod
    @hookimpl
    def edit_revert(lm: Lm, applied: Applied) -> bool:
        for site, change in applied.before.items():
            lm.add(site, change)
        return True


class Forgetful(Nudge):
    """Says it reverted."""

    @staticmethod
    @hookimpl
    def edit_revert() -> bool:
        return True


class Idle(Nudge):
    """Applies nothing."""

    @staticmethod
    @hookimpl
    def edit_apply() -> Applied:
        return Applied({})


class Sloppy(Nudge):
    """Changes one more parameter while it applies, and leaves that so."""

    @staticmethod
    @hookimpl
    def edit_apply(lm: Lm, update: Update) -> None:
        change_a_weight(lm)


class OnlyWhenAllIsWell(Nudge):
    """Reverts, but not while an exception is under way."""

    @staticmethod
    @hookimpl
    def edit_revert(lm: Lm, applied: Applied) -> bool | None:
        import sys

        return True if sys.exc_info()[0] is KeyboardInterrupt else None


class TestLaw6Subtracting(EditorContract):
    method, plugin = "nudge", Subtracting


class TestLaw6Forgetful(EditorContract):
    method, plugin = "nudge", Forgetful


class TestLaw6Idle(EditorContract):
    method, plugin = "nudge", Idle


class TestLaw6Sloppy(EditorContract):
    method, plugin = "nudge", Sloppy


class TestLaw6OnlyWhenAllIsWell(EditorContract):
    method, plugin = "nudge", OnlyWhenAllIsWell


# ---- what cannot even be loaded


class NeedsALayer(Options):
    layer: int


class TestUnloadable(EditorContract):
    method, plugin = "nudge", of_options(Nudge, NeedsALayer)


# ---- law 7: updates computed together equal updates computed alone


class SummedTogether(Nudge):
    """A batch whose updates depend on how many there are."""

    @staticmethod
    @hookimpl
    def edit_compute_many(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions
    ) -> list[Update]:
        deltas = Nudge.edit_compute(lm, locations[0], options).deltas
        summed = {site: Dense(len(requests) * delta.dense()) for site, delta in deltas.items()}
        return [Update(summed) for _ in requests]


class TestLaw7SummedTogether(EditorContract):
    method, plugin = "nudge", SummedTogether


class OneForAll(Nudge):
    """Fewer updates than requests."""

    @staticmethod
    @hookimpl
    def edit_compute_many(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions
    ) -> list[Update]:
        return [Nudge.edit_compute(lm, locations[0], options)]


class TestLaw7OneForAll(EditorContract):
    method, plugin = "nudge", OneForAll


# ---- laws 8 to 14: one change for several requests


def key_of(request: Request) -> float:
    """A number of the request alone."""
    return float(len(request.text) + len(request.target_new))


class Joint(Nudge):
    """A good one: it adds up a number of each request, and less of it after earlier edits."""

    @staticmethod
    @hookimpl
    def edit_compute_joint(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions, carried: Any
    ) -> Update:
        earlier = sum(float(each["seen"].sum()) for each in carried)
        step = sum(key_of(request) for request in requests) / (1.0 + earlier)
        site = locations[0].sites[0]
        rows, columns = lm.weight(site).shape
        left, right = torch.full((rows, 1), step), torch.ones(1, columns)
        seen = torch.tensor([key_of(request) for request in requests])
        return Update({site: LowRank(left, right)}, {}, {"seen": seen})


class OnlyJoint:
    """A good one without `edit_compute`."""

    edit_describe = Nudge.edit_describe
    edit_locate = Nudge.edit_locate
    edit_compute_joint = Joint.edit_compute_joint


def wrong_joint(change: Callable[..., Update]) -> type:
    """A joint method whose update is ``change(update, lm, requests, options, carried)``."""

    class Wrong(OnlyJoint):
        @staticmethod
        @hookimpl
        def edit_compute_joint(
            lm: Lm, requests: Any, locations: Any, options: NudgeOptions, carried: Any
        ) -> Update:
            found = Joint.edit_compute_joint(lm, requests, locations, options, carried)
            return change(found, lm, requests, options, carried)

    return Wrong


class TestGoodJoint(EditorContract):
    method, plugin = "nudge", OnlyJoint


class ForgetsNothing(OnlyJoint):
    """Joint and without a carry."""

    @staticmethod
    @hookimpl
    def edit_compute_joint(lm: Lm, requests: Any, locations: Any, options: NudgeOptions) -> Update:
        found = Joint.edit_compute_joint(lm, requests, locations, options, ())
        return Update(found.deltas)


class TestGoodJointWithoutCarry(EditorContract):
    method, plugin = "nudge", ForgetsNothing


class TestLaw8AnotherUpdateAlone(EditorContract):
    """Its own `edit_compute` gives something else."""

    method, plugin = "nudge", Joint


class FirstCounts(OnlyJoint):
    @staticmethod
    @hookimpl
    def edit_compute_joint(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions, carried: Any
    ) -> Update:
        return Joint.edit_compute_joint(lm, requests[:1], locations, options, carried)


class TestLaw9FirstCounts(EditorContract):
    method, plugin = "nudge", FirstCounts


BATCHES: set[str] = set()


def remember(found: Update, lm: Lm, requests: Any, options: NudgeOptions, carried: Any) -> Update:
    """It counts the batches that it has seen; a batch of one is as it should be."""
    if len(requests) == 2:
        found = scaled(found, 1.0 + len(BATCHES))
    BATCHES.add(str(sorted(request.text for request in requests)) + str(len(BATCHES)))
    return found


def scaled(update: Update, factor: float) -> Update:
    deltas = {
        site: LowRank(factor * delta.left, delta.right)
        for site, delta in update.deltas.items()
        if isinstance(delta, LowRank)
    }
    return Update(deltas, {}, update.carry)


class TestLaw10Remembers(EditorContract):
    method, plugin = "nudge", wrong_joint(remember)


def write_into_the_carry(
    found: Update, lm: Lm, requests: Any, options: NudgeOptions, carried: Any
) -> Update:
    for each in carried if len(requests) == 2 else ():
        each["seen"] += 1
    return found


class TestLaw10WritesIntoTheCarry(EditorContract):
    method, plugin = "nudge", wrong_joint(write_into_the_carry)


class CarriesNaN(OnlyJoint):
    @staticmethod
    @hookimpl
    def edit_compute_joint(lm: Lm, requests: Any, locations: Any, options: NudgeOptions) -> Update:
        found = Joint.edit_compute_joint(lm, requests, locations, options, ())
        return Update(found.deltas, {}, {"seen": torch.tensor([1.0, torch.inf])})


class TestLaw11CarriesInfinity(EditorContract):
    method, plugin = "nudge", CarriesNaN


class HidesInTheCarry(OnlyJoint):
    """What it needs is an attribute of the tensor, which a file does not keep."""

    @staticmethod
    @hookimpl
    def edit_compute_joint(
        lm: Lm, requests: Any, locations: Any, options: NudgeOptions, carried: Any
    ) -> Update:
        found = Joint.edit_compute_joint(lm, requests, locations, options, ())
        found.carry["seen"].hidden = 3.0
        return scaled(found, 1.0 + sum(getattr(each["seen"], "hidden", 0.0) for each in carried))


class TestLaw11HidesInTheCarry(EditorContract):
    method, plugin = "nudge", HidesInTheCarry


class SaysNothing(NudgeOptions):
    """A carry depends on the layer, but the values that are compared leave it out."""

    prepares = ("layer",)

    def prepared_from(self) -> dict[str, Any]:
        return {}


class TestLaw12OfAnyOptions(EditorContract):
    method, plugin = "nudge", of_options(OnlyJoint, SaysNothing)


class AppliesTheCarry(OnlyJoint):
    @staticmethod
    @hookimpl
    def edit_apply(lm: Lm, update: Update) -> Applied:
        before = {site: lm.snapshot(site) for site in update.deltas}
        for site, delta in update.deltas.items():
            lm.add(site, delta.dense() + sum(float(each.sum()) for each in update.carry.values()))
        return Applied(before)


class TestLaw13AppliesTheCarry(EditorContract):
    method, plugin = "nudge", AppliesTheCarry


def inflate_the_rank(
    found: Update, lm: Lm, requests: Any, options: NudgeOptions, carried: Any
) -> Update:
    if len(requests) < 3:
        return found
    deltas = {
        site: LowRank(delta.left.expand(-1, 40), delta.right.expand(40, -1) / 40)
        for site, delta in found.deltas.items()
        if isinstance(delta, LowRank)
    }
    return Update(deltas, {}, found.carry)


class TestLaw14HugeRank(EditorContract):
    method, plugin = "nudge", wrong_joint(inflate_the_rank)


def change_another_site(
    found: Update, lm: Lm, requests: Any, options: NudgeOptions, carried: Any
) -> Update:
    if len(requests) < 3:
        return found
    (delta,) = found.deltas.values()
    return Update({lm.mlp_out(options.layer + 1): delta}, {}, found.carry)


class TestLaw14Elsewhere(EditorContract):
    method, plugin = "nudge", wrong_joint(change_another_site)
