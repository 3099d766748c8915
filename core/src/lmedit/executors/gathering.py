"""Tasks without a run folder: the driver itself keeps each result, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from lmedit.errors import RunError
from lmedit.executors import Group, be_silent, error_from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.executors import Job, Reply
    from lmedit.executors.engine import Engine


def ignore_files(_: Mapping[str, bytes]) -> None:
    """Drop the files of a reply."""


def finish_each(
    engine: Engine,
    job: Job,
    tasks: Mapping[str, str],
    keep: Callable[[Mapping[str, bytes]], object] = ignore_files,
    *,
    unit: str = "task",
    tell: Callable[[str], object] = be_silent,
) -> dict[str, str]:
    """Let the workers of *engine* do each of *tasks*; return the payloads by key.

    *tasks* has what an error names, by key. *keep* receives the files of each reply, which stay if
    a later task fails. Raises the errors of workers, and `RunError` if a task has two different
    results, or if every worker that did it ended.
    """
    found: dict[str, str] = {}
    if not tasks:
        return found
    if engine.most > len(tasks):
        tell(f"{len(tasks)} {unit}(s) to do, so no more workers than that")
        engine = engine.limit(len(tasks))
    alone = None if engine.most > 1 else True  # the task has a bar of its own
    bar = tqdm(total=len(tasks), unit=unit, disable=alone, leave=False)

    def take(reply: Reply) -> None:
        if reply.error is not None:
            raise error_from_text(reply.error)
        if reply.group is not None and reply.lost is not None:
            why = f"{reply.group.method}: {reply.lost}"
            raise RunError(f"{why}; run the command again")
        keep(reply.files)
        for each in reply.finished:
            if found.setdefault(each.key, each.payload) != each.payload:
                what = f"{each.method}: two workers have different results for {each.case_id}"
                raise RunError(f"{what}; give all machines the same versions, or one worker")
        bar.update(len(found) - int(bar.n))

    with bar, engine.start(job, tell=tell) as pool:
        pool.run((Group(about, (key,), (key,)) for key, about in tasks.items()), take)
    return found
