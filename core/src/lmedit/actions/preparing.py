"""`prepare` of several layers by several workers: each layer is a task; the driver fills the cache.

A worker hands back the file of a preparation. On another machine it hands back new statistics too.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.errors import RunError
from lmedit.executors import Finished, Job, Reply
from lmedit.executors.gathering import finish_each
from lmedit.executors.sharing import place_files
from lmedit.options import takes_checkpoint
from lmedit.plan import Setup, Tell, set_up, silent
from lmedit.preparation import prepared_path
from lmedit.stats import Statistics, list_statistics, text_name
from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmedit.executors import Group
    from lmedit.executors.engine import Engine
    from lmedit.options import Options
    from lmedit.plan import Plan
    from lmedit.registry import LoadedMethod
    from lmedit.types import Material


def find_home() -> tuple[str, str]:
    """This machine and its cache folder."""
    return platform.node(), str(cache_folder().resolve())


@dataclass(frozen=True)
class Preparing:
    """One method with the options of several preparations: what a worker works with."""

    setup: Setup
    several: tuple[Options, ...]
    home: tuple[str, str] = field(default_factory=find_home)
    """The driver's machine and cache folder; a worker elsewhere hands back statistics too."""

    @property
    def loaded(self) -> LoadedMethod:
        """The method."""
        (loaded,) = self.setup.methods
        return loaded

    @cached_property
    def material(self) -> Material | None:
        """The text or the cases to prepare on."""
        return self.setup.material(self.loaded, train=True)

    @cached_property
    def tasks(self) -> dict[str, Options]:
        """The options of each preparation, by the path of its file in the cache."""
        if self.loaded.method.prepares_on is None:
            return {}
        return {
            self.path(each).relative_to(cache_folder()).as_posix(): each
            for each in self.several
            if each.needs_preparation
        }

    def path(self, options: Options) -> Path:
        """The place of the preparation with these *options*."""
        on = None if takes_checkpoint(options) else self.material
        return prepared_path(self.loaded, self.setup.lm, options, on)

    def do(self, group: Group) -> Reply:
        """Prepare with the options of each wanted task; the files are part of the reply."""
        finished: list[Finished] = []
        files: dict[str, bytes] = {}
        for key in group.wanted:
            if key not in self.tasks:
                raise RunError(
                    f"{self.loaded.name}: a worker has another model, text or version than the "
                    "driver; give all machines the same"
                )
            started, away = time.perf_counter(), self.home != find_home()
            before = _stored_statistics() if away else set()
            payload, files[key] = self._prepare(key)
            if away:
                new = _stored_statistics() - before
                files |= {name: (cache_folder() / name).read_bytes() for name in sorted(new)}
            seconds = time.perf_counter() - started
            finished.append(Finished(key, group.method, Path(key).stem, payload, seconds))
        return Reply(group, tuple(finished), files=files)

    def _prepare(self, key: str) -> tuple[str, bytes]:
        """The digest of the prepared tensors as JSON, and the bytes of their file."""
        path = cache_folder() / key
        with tempfile.TemporaryDirectory(prefix="lmedit-") as folder:
            place = path if path.is_file() else Path(folder) / path.name
            editor = self.setup.prepare_into(self.loaded, self.tasks[key], place)
            return json.dumps(editor.identity["prepared"]), place.read_bytes()

    def leave(self) -> Reply:
        """Nothing more, because a method that changes the model is an error at once."""
        return Reply(None)


def _stored_statistics() -> set[str]:
    """The files of all statistics, by their path in the cache."""
    return {each.path.relative_to(cache_folder()).as_posix() for each in list_statistics()}


def load_preparing(
    plan: Plan, each: Sequence[Mapping[str, int]], home: tuple[str, str]
) -> Preparing:
    """Set everything up again, in another process."""
    setup = set_up(plan, more=each)
    (loaded,) = setup.methods
    return Preparing(setup, tuple(setup.options(loaded, **more) for more in each), home)


def fill_cache(
    preparing: Preparing,
    engine: Engine,
    load: Callable[[], Preparing],
    tell: Tell = silent,
) -> None:
    """Prepare each task that the cache lacks, by itself, on the workers of *engine*.

    *load* makes the same in a worker; it can be pickled. Raises the errors of the method, and
    `RunError` if two workers prepare the same options differently.
    """
    name, material = preparing.loaded.name, preparing.material
    missing = [key for key in preparing.tasks if not (cache_folder() / key).is_file()]
    if missing and material is not None:
        tell(f"{name}: preparing on {text_name(material)}, once for this model")
    files = {}
    if isinstance(material, Statistics):
        files[material.path.relative_to(cache_folder()).as_posix()] = material.path

    def keep(made: Mapping[str, bytes]) -> None:
        place_files(made, made.__getitem__)

    tasks = dict.fromkeys(missing, f"method {name!r}")
    job = Job(load, preparing, files)
    finish_each(engine, job, tasks, keep, unit="preparation", tell=tell)
