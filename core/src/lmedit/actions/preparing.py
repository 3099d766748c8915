"""`prepare` of several layers or methods by several workers: each preparation is a task.

A worker hands back the file of a preparation, and the driver fills the cache. On another machine a
worker hands back new statistics too.
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
from lmedit.options import fitting, takes_checkpoint
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


def find_wanted(
    setup: Setup, each: Sequence[Mapping[str, int]]
) -> tuple[tuple[LoadedMethod, Options], ...]:
    """The methods of *setup* with each of the options in *each* that they take, none twice."""
    found: dict[str, tuple[LoadedMethod, Options]] = {}
    every = [loaded.method for loaded in setup.methods]
    for loaded in setup.methods:
        for more in each:
            options = setup.options(loaded, **fitting(every, loaded.method, more))
            found.setdefault(f"{loaded.name} {options!r}", (loaded, options))
    return tuple(found.values())


@dataclass(frozen=True)
class Preparing:
    """Methods with the options of each preparation: what a worker works with."""

    setup: Setup
    wanted: tuple[tuple[LoadedMethod, Options], ...]
    home: tuple[str, str] = field(default_factory=find_home)
    """The driver's machine and cache folder; a worker elsewhere hands back statistics too."""

    @cached_property
    def materials(self) -> dict[str, Material | None]:
        """The text or the cases to prepare on, by method."""
        setup = self.setup
        return {loaded.name: setup.material(loaded, train=True) for loaded in setup.methods}

    @cached_property
    def tasks(self) -> dict[str, tuple[LoadedMethod, Options]]:
        """The method and the options of each preparation, by the path of its file in the cache."""
        return {
            self.path(loaded, options).relative_to(cache_folder()).as_posix(): (loaded, options)
            for loaded, options in self.wanted
            if options.needs_preparation and loaded.method.prepares_on is not None
        }

    def path(self, loaded: LoadedMethod, options: Options) -> Path:
        """The place of the preparation of *loaded* with these *options*."""
        on = None if takes_checkpoint(options) else self.materials[loaded.name]
        return prepared_path(loaded, self.setup.lm, options, on)

    def do(self, group: Group) -> Reply:
        """Prepare with the options of each wanted task; the files are part of the reply."""
        finished: list[Finished] = []
        files: dict[str, bytes] = {}
        for key in group.wanted:
            if key not in self.tasks:
                name = group.method.removeprefix("method ").strip("'")
                raise RunError(
                    f"{name}: a worker has another model, text or version than the driver; give "
                    "all machines the same"
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
            editor = self.setup.prepare_into(*self.tasks[key], place)
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
    return Preparing(setup, find_wanted(setup, each), home)


def fill_cache(
    preparing: Preparing,
    engine: Engine,
    load: Callable[[], Preparing],
    tell: Tell = silent,
) -> None:
    """Prepare each task that the cache lacks, by itself, on the workers of *engine*.

    *load* makes the same in a worker; it can be pickled. Raises the errors of a method, and
    `RunError` if two workers prepare the same options differently.
    """
    missing = {
        key: loaded.name
        for key, (loaded, _) in preparing.tasks.items()
        if not (cache_folder() / key).is_file()
    }
    files = {}
    for name in dict.fromkeys(missing.values()):
        material = preparing.materials[name]
        if material is not None:
            tell(f"{name}: preparing on {text_name(material)}, once for this model")
        if isinstance(material, Statistics):
            files[material.path.relative_to(cache_folder()).as_posix()] = material.path

    def keep(made: Mapping[str, bytes]) -> None:
        place_files(made, made.__getitem__)

    tasks = {key: f"method {name!r}" for key, name in missing.items()}
    job = Job(load, preparing, files)
    finish_each(engine, job, tasks, keep, unit="preparation", tell=tell)
