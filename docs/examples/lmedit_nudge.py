"""lmedit_nudge.py: one constant step on one matrix."""

import torch

from lmedit import Dense, Lm, Location, Method, Options, Update, hookimpl


class NudgeOptions(Options):
    """The block, and how far every entry of its matrix goes."""

    layer: int = 0
    step: float = 0.1


@hookimpl
def edit_describe() -> Method:
    return Method("nudge", "no paper", NudgeOptions)


@hookimpl
def edit_locate(lm: Lm, options: NudgeOptions) -> Location:
    return Location((lm.mlp_out(options.layer),))


@hookimpl
def edit_compute(lm: Lm, location: Location, options: NudgeOptions) -> Update:
    (site,) = location.sites
    return Update({site: Dense(options.step * torch.ones_like(lm.weight(site)))})
