"""Join a cluster of Ray, or start one on this machine. Nothing is downloaded or reported."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import OptionError, RunError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmedit.executors import Crew

STORE_MEGABYTES = 200
"""The size of the object store of a new cluster: preparations and results pass through it."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""Ray's own variables, unless the user set them. Ray sends no reports. It hides GPUs from a worker
that asked for none. Workers have the driver's priority; Ray would lower theirs by 15. Ray does not
print the later errors of an actor that ended; the pool tells the first one."""
TOLD = ("Raylet is terminated", "A worker died or was killed", "Task Seat.")
"""How Ray begins what it prints about the end of a raylet, or of an actor: lmedit tells both."""
LEAST_MEGABYTES = 80
"""The smallest object store that Ray accepts."""


@dataclass(frozen=True)
class Wishes:
    """The options of the executor, as values."""

    address: str | None
    cpus: float
    gpus: float
    env: tuple[str, ...]
    memory: float
    most: int
    """The largest number of workers."""

    @classmethod
    def read(cls, crew: Crew) -> Wishes:
        """Those of *crew*. Raises `OptionError` for a value that does not fit."""
        given = crew.options
        names = tuple(name for name in given.get("env", "").split(",") if name)
        for name in names:
            if name not in os.environ:
                raise OptionError(f"executor 'ray': env names {name}, which is not set; set it")
        return cls(
            given.get("address"),
            _number("cpus", given.get("cpus", "1"), 0.01),
            _number("gpus", given.get("gpus", "0"), 0.0),
            names,
            _number("memory", given.get("memory", str(STORE_MEGABYTES)), LEAST_MEGABYTES),
            crew.workers[1],
        )

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What Ray sends to each worker beside the job: the named variables, and nothing else."""
        if not self.env:
            return {}
        return {"env_vars": {name: os.environ[name] for name in self.env}}


def _number(name: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise OptionError(
            f"executor 'ray': {name} {text!r} is not a number from {least}; correct it"
        )
    return value


@contextmanager
def join_cluster(wishes: Wishes) -> Iterator[None]:
    """Be a driver of Ray in the block. A cluster that was started here ends with it.

    A program that is connected to Ray already stays connected.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        with _signals_kept():
            ray.init(**_arguments(wishes))
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = one_line(error)[:300]
        raise RunError(
            f"cannot join the Ray cluster {wishes.address or 'of this machine'}: {why}; start one "
            "with ray start --head, or leave out --address"
        ) from error
    try:
        with _stdout_kept():
            yield
    finally:
        with _signals_kept():
            ray.shutdown()


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Keep Ray from printing on stdout. What lmedit tells in one line is not printed at all.

    Ray prints messages of its raylets there, from a thread, and has no option for it.
    """
    from ray._private import worker

    module: Any = worker
    before = module.print_to_stdstream

    def tell(data: dict[str, Any], *given: Any, **more: Any) -> None:
        if not str(next(iter(data.get("lines", ())), "")).startswith(TOLD):
            before({**data, "is_err": True}, *given, **more)

    module.print_to_stdstream = tell
    try:
        yield
    finally:
        module.print_to_stdstream = before


def _arguments(wishes: Wishes) -> dict[str, Any]:
    """The arguments of `ray.init`."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wishes.address is not None:
        return {"address": wishes.address, **quiet}
    processors = max(os.cpu_count() or 1, math.ceil(wishes.most * wishes.cpus))
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": processors,
        "object_store_memory": int(wishes.memory * 2**20),
        **quiet,
    }


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the program's own answer to SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
