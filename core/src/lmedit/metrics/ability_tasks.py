"""The tasks of EleutherAI's lm-evaluation-harness (the package lm-eval) that a user names."""

from __future__ import annotations

import io
import logging
import random
import sys
import warnings
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmedit.cases.hub import is_on_hub, without_hub
from lmedit.errors import CasesError, RequestError
from lmedit.models.refusals import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED, OTHER_SEED = 0, 1234
"""The harness's own seeds: of `random`, and of numpy, torch and the examples in prompts."""


@dataclass(frozen=True)
class Wanted:
    """The tasks that a user names, and where they come from."""

    tasks: tuple[str, ...]
    """Names of tasks, groups or tags, of the harness or of the user's folder."""
    include: Path | None = None
    """A folder with YAML files of the user's own tasks."""
    limit: int | None = None
    """Only the first documents of each task."""
    download: bool = False
    """Whether data sets may be downloaded from the hub."""


def tasks_in(text: str, culprit: str) -> tuple[str, ...]:
    """The names in *text*, a list with commas. Raises `RequestError` for none or a repeated one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise RequestError(f"{culprit} names no task; give one, such as arc_easy")
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"{culprit} names {name} twice; name it once")
    return tuple(names)


def check_harness() -> None:
    """Raise `RequestError` if the package lm-eval is missing."""
    if find_spec("lm_eval") is None:
        raise RequestError(
            "abilities need the package lm-eval; run pip install 'lmedit[abilities]'"
        )


def load_tasks(wanted: Wanted) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """The harness's tasks by name, and for each wanted name the tasks that it stands for.

    No model is needed. Raises `RequestError` with one line: for a missing package, an unknown task,
    a task whose data is not here, and a task that cannot be loaded.
    """
    check_harness()
    with aside():
        manager = _manager(wanted)
        found: dict[str, Any] = {}
        parts: dict[str, tuple[str, ...]] = {}
        for name in wanted.tasks:
            loaded = _load(manager, name, wanted)
            found |= loaded
            parts[name] = tuple(loaded)
    for task in found.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=OTHER_SEED)
    return found, parts


def _manager(wanted: Wanted) -> Any:
    """The harness's index of tasks: of the user's folder, and with its own tasks if needed."""
    from lm_eval.tasks import TaskManager

    if wanted.include is not None:
        own = TaskManager(include_path=str(wanted.include), include_defaults=False)
        alone = {*own.all_subtasks, *own.all_tags}
        if alone >= set(wanted.tasks):
            return own
    include = None if wanted.include is None else str(wanted.include)
    manager = TaskManager(include_path=include)
    for name in wanted.tasks:
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else "name one of lm-eval's"
            where = "" if wanted.include is None else f" or in {wanted.include}"
            raise RequestError(
                f"no task {name!r} in lm-eval{where}; {hint}, or give --include-path FOLDER"
            )
    return manager


def _load(manager: Any, name: str, wanted: Wanted) -> dict[str, Any]:
    """The tasks that *name* stands for."""
    with ExitStack() as stack:
        if not wanted.download:
            stack.enter_context(without_hub())
        try:
            return dict(manager.load([name])["tasks"])
        except Exception as error:
            if is_on_hub(error):
                raise RequestError(
                    f"task {name!r}: its data set is not on this machine; add --download to fetch "
                    "it"
                ) from error
            why = f"task {name!r} cannot be loaded ({first_line(error)}); correct its files"
            raise RequestError(why) from error


@contextmanager
def aside(*, quiet: bool = True) -> Iterator[None]:
    """Use the harness's seeds in the block, then restore all generators; it prints nothing.

    Without *quiet* its bars are shown on a terminal.
    """
    import numpy as np
    import torch

    logger = logging.getLogger("lm_eval")
    level, states = logger.level, (random.getstate(), np.random.get_state())
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if quiet or not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        logger.setLevel(logging.CRITICAL)
        random.seed(SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])


def check_include(path: Path | None) -> None:
    """Raise `CasesError` if *path*, the folder of the user's tasks, holds no YAML file."""
    if path is None:
        return
    if not path.is_dir() or next(path.glob("**/*.yaml"), None) is None:
        raise CasesError(f"--include-path {path}: no folder with YAML files of tasks; name another")
