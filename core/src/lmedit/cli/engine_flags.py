"""The flags that choose an executor and its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import flags
from lmedit.executors.engine import Engine

if TYPE_CHECKING:
    ParamType = click.ParamType[tuple[int, int]]
else:
    ParamType = click.ParamType  # click before 8.5 has no type argument

MOST_WORKERS = 100_000
"""The largest number of workers that --workers takes."""


class WorkersType(ParamType):
    """A number of workers, or a range LEAST:MOST."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """The least and the largest number in *value*; wrong usage if it holds none."""
        if isinstance(value, tuple):
            return value
        least, colon, most = str(value).partition(":")
        try:
            found = int(least), int(most if colon else least)
        except ValueError:
            self.fail(f"{value!r} is not a number N or a range N:M", param, ctx)
        if not 1 <= found[0] <= found[1] <= MOST_WORKERS:
            self.fail(f"{value} is not from 1 to {MOST_WORKERS}, the smaller first", param, ctx)
        return found


workers_flag = click.option(
    "--workers",
    type=WorkersType(),
    default="1",
    show_default=True,
    metavar="N[:M]",
    help="How many workers share the work. Each loads its own model. N:M: up to M, as many as a "
    "cluster has room for; you are told if it has none for N.",
)

engine_flags = flags(
    workers_flag,
    click.option(
        "--executor",
        metavar="NAME",
        help="Who runs the workers: local, processes, ray, or another installed executor.  "
        "[default: processes if there are several workers]",
    ),
    click.option(
        "--address",
        metavar="ADDRESS",
        help="The cluster of the executor; auto: the one in reach.  [default: a new one on this "
        "machine]",
    ),
    click.option(
        "--executor-option",
        "executor_options",
        nargs=2,
        multiple=True,
        metavar="KEY VALUE",
        help="Set an option of the executor, as cpus 2; repeatable. lmedit doctor lists executors.",
    ),
)


def engine_of(given: dict[str, Any]) -> Engine:
    """Remove the flags of an executor from *given*, and return the choice.

    Raises `LmeditError` if there is no such executor, or if a flag does not fit it.
    """
    workers, options = given.pop("workers"), given.pop("executor_options")
    address, name = given.pop("address"), given.pop("executor")
    name = name or ("processes" if workers[1] > 1 else "local")
    if address is not None:
        options = (*options, ("address", address))
    engine = Engine(name, workers, tuple(options))
    engine.check()
    return engine
