"""The groups that wait for a worker: new ones, and those of workers that ended."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from lmedit.executors import Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmedit.executors import Group

TRIES = 4
"""How many workers may end during one group; then the group is lost."""


class Waiting:
    """Gives out groups. It takes a new one from the iterable only when somebody asks."""

    def __init__(self, groups: Iterable[Group]) -> None:
        """*groups* are new."""
        self._new = iter(groups)
        self._again: deque[Group] = deque()
        self._ends: Counter[tuple[str, ...]] = Counter()

    def next_group(self) -> Group | None:
        """A group to do, those of workers that ended first; None if there is none."""
        return self._again.popleft() if self._again else next(self._new, None)

    def more(self) -> bool:
        """Whether a group is left. It may take one from the iterable."""
        if not self._again and (group := next(self._new, None)) is not None:
            self._again.append(group)
        return bool(self._again)

    def put_back(self, group: Group, why: str, *, begun: bool = True) -> Reply | None:
        """The worker of *group* ended (*why*): another one gets the group.

        Returns a reply that the group is lost, if too many workers ended during it. A group that
        its worker had not *begun* does not count as an end.
        """
        self._ends[group.wanted] += begun
        if self._ends[group.wanted] < TRIES:
            self._again.append(group)
            return None
        return Reply(group, lost=why)
