"""`lmedit plan METHOD`: estimate memory and time from the model's config alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
    refuse_unused,
    say,
)
from lmedit.cli.foreign import runs_method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.actions.estimate import Estimate

GIGABYTE = 1e9


@click.command()
@click.argument("method")
@model_flags
@method_flags
@json_flag
@runs_method
def plan(method: str, *, as_json: bool, **given: Any) -> None:
    """Estimate the memory and time of METHOD on a model. It reads the config, not the weights.

    The exit code is 1 if the method does not fit into the free memory.
    """
    import torch

    from lmedit.actions.estimate import estimate
    from lmedit.models.devices import device_of
    from lmedit.plan import Setup

    flags = ("--corpus", "--observe", "--seed", "--edit-timeout", "--prepare-timeout")
    refuse_unused("does not change the estimate", *flags)
    given["methods"] = (method,)
    plan = plan_of(given)
    (loaded,) = plan.load_methods(note)
    lm = plan.outline()
    where = torch.device(device_of(plan.device))
    found = estimate(loaded, lm, Setup(plan, (loaded,), lm).options(loaded), where)
    if as_json:
        told = {
            "method": method,
            "model": lm.name,
            "number_type": lm.dtype_name,
            "device": str(where),
            **found.as_json(),
        }
        say(as_json_text(told))
    else:
        say(_text(found, f"{method} on {lm.name}, {lm.dtype_name}, {where}", lm.dtype_name))
    if found.fits is False:
        raise click.exceptions.Exit(1)


def _text(plan: Estimate, title: str, dtype: str) -> str:
    """The plan as lines: the fixed memory, then each step with its peak and its time."""
    lines = [title, *_sizes(plan.fixed)]
    for name, work in plan.work.items():
        lines += ["", f"{name}, beside that", *_sizes(work.memory)]
        lines.append(
            f"  {'at its peak':<34} {_gigabytes(plan.total(name))}, {plan.time_class(name)}"
        )
    if not plan.work:
        lines += ["", "the method gives no estimate of its own memory and time"]
    if plan.free is not None:
        lines += ["", f"  {'free':<34} {_gigabytes(plan.free)}"]
        lines.append("it fits" if plan.fits else f"it does not fit; {_remedy(dtype)}")
    return "\n".join(lines)


def _sizes(memory: Mapping[str, float]) -> list[str]:
    return [f"  {name:<34} {_gigabytes(size)}" for name, size in memory.items()]


def _gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:8.2f} GB"


def _remedy(dtype: str) -> str:
    smaller = "" if dtype in {"bfloat16", "float16"} else "try --dtype bfloat16, "
    return f"{smaller}a machine with more memory, or fewer rows at once (lmedit show METHOD)"
