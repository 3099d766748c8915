"""The driver of a run: it gives groups of tasks to workers, and alone writes their results.

Finished tasks are in the store and are not repeated. Several drivers may share a run: each claims
tasks before it gives them out, and waits for those of the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lmedit.compare.result import Result
from lmedit.compare.worker import POLL_SECONDS, finish_task, task_groups
from lmedit.executors import Group, error_from_text
from lmedit.executors.local import Here

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmedit.compare.one_edit import Task
    from lmedit.compare.store import RunStore
    from lmedit.compare.worker import Ended, Worker
    from lmedit.executors import Pool, Reply


@dataclass(frozen=True)
class Hands:
    """Who does the work of a comparison: the driver's own worker, and a pool of workers."""

    worker: Worker
    pool: Pool
    about: str = ""
    """What tells other workers where to find the tasks; empty: the name of the candidate."""


def one_pair(worker: Worker) -> Hands:
    """The hands of this process alone."""
    return Hands(worker, Here(worker))


@dataclass
class Driver:
    """Finishes the tasks of a run. It is the only one in its process that writes the store."""

    store: RunStore
    hands: Hands
    after: Ended | None = None
    """If a process ended while it did this work: tasks are done one by one."""
    bar: tqdm[Any] | None = None
    _tasks: dict[str, Task] = field(default_factory=dict)
    _mine: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """The keys that this driver stored, by method."""
    _void: dict[str, str] = field(default_factory=dict)
    """Methods that changed the model, and how: each of their tasks is a failure."""
    _alone: set[str] = field(default_factory=set)
    """Tasks of groups that were lost: each is given out by itself."""
    _given: int = 0
    """How many groups were given out in this round."""

    def finish(self, tasks: Sequence[Task]) -> None:
        """Finish *tasks*, and wait for those of other drivers.

        If a candidate changes the model, all its cases fail and its results are dropped. Raises
        `RunError` if a task has two different results, and the errors of workers.
        """
        self._tasks = {task.key: task for task in tasks}
        self.hands.worker.tasks |= self._tasks
        waiting = task_groups(tasks)
        with tqdm(total=len(tasks), unit="case", disable=None, leave=False) as self.bar:
            while waiting:
                self._given = 0
                self._show_progress("", sum(map(self._count_left, waiting)))
                self.hands.pool.run(self._claimed_groups(waiting), self._take)
                waiting = [group for group in waiting if self._count_left(group)]
                if waiting and not self._given:
                    time.sleep(POLL_SECONDS)

    def _count_left(self, group: Sequence[Task]) -> int:
        return len(self.store.left_of([task.key for task in group]))

    def _claimed_groups(self, waiting: Sequence[Sequence[Task]]) -> Iterator[Group]:
        """The free tasks of each group, claimed when somebody asks for them."""
        for group in waiting:
            keys = self.store.left_of([task.key for task in group])
            for some in self._portions([task for task in group if task.key in keys]):
                claimed = self._claim(some)
                if claimed:
                    self._given += 1
                    yield self._as_group(group, claimed)

    def _portions(self, left: Sequence[Task]) -> list[Sequence[Task]]:
        """*left* as one portion; or each task by itself, if a worker ended during one of them."""
        one_by_one = self.after is not None or any(task.key in self._alone for task in left)
        return [[task] for task in left] if one_by_one else [left]

    def _claim(self, tasks: Sequence[Task]) -> list[Task]:
        """Claim *tasks* of one method; return those that no other driver has.

        Those that cannot succeed are failures, and are not returned.
        """
        if not tasks:
            return []
        why = self._void.get(tasks[0].candidate.name)
        if why is None and self.after is not None:  # then it is one task
            guilty = self.after.give_up or self.store.left_behind(tasks[0].key)
            why = self.after.why if guilty else None
        keys = self.store.claim_all([task.key for task in tasks])
        claimed = [task for task in tasks if task.key in keys]
        if why is None:
            return claimed
        for task in claimed:
            self._fail(task, why)
        return []

    def _fail(self, task: Task, why: str) -> None:
        self.store.add([finish_task(task, Result(failure=why))])
        self._mine[task.candidate.name].append(task.key)
        self._show_progress(task.candidate.name)

    def _as_group(self, group: Sequence[Task], wanted: Sequence[Task]) -> Group:
        name = group[0].candidate.name
        keys, some = (tuple(task.key for task in each) for each in (group, wanted))
        return Group(name, keys, some, self.hands.about or name)

    def _take(self, reply: Reply) -> None:
        """Store what a worker hands back."""
        for method, what in reply.changed.items():
            self._void[method] = what
            self.store.drop(self._mine.pop(method, []))
        group = reply.group
        if group is not None and group.method not in self._void:
            self.store.add(reply.finished)
            self._mine[group.method] += [each.key for each in reply.finished]
            self._show_progress(group.method, finished=len(reply.finished))
            if reply.lost is not None:
                self._take_lost(group, reply.lost)
        if reply.error is not None:
            raise error_from_text(reply.error)

    def _take_lost(self, group: Group, why: str) -> None:
        """Workers ended during *group*: try its tasks one by one; one alone is a failure."""
        if len(group.wanted) > 1:
            self._alone.update(group.wanted)
            return
        self._fail(self._tasks[group.wanted[0]], f"method {group.method!r}: {why}")

    def _show_progress(self, method: str, left: int | None = None, *, finished: int = 1) -> None:
        """Count *finished* tasks of *method*; or count anew, if it is known how many are *left*."""
        if self.bar is None:
            return
        if left is not None:
            finished = len(self._tasks) - left - int(self.bar.n)
        if method:
            self.bar.set_description(method, refresh=False)
        self.bar.update(finished)
