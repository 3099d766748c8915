"""The executor `ray`: actors of Ray, each with its own model, on this machine or on a cluster.

Importing this package does not import ray.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmedit.executors import Crew, Job, Pool

NOTED = Path("ray") / "ray_current_cluster"
"""Where Ray notes, below the folder for temporary files, the cluster of this machine."""


class RayExecutor:
    """Workers are actors of Ray."""

    elastic = True
    options: Mapping[str, str] = MappingProxyType(
        {
            "address": "The cluster; auto: the one in reach. Without it, a new one on this machine",
            "cpus": "CPUs of each worker, fractions allowed; 1 without it",
            "gpus": "GPUs of each worker, fractions allowed; 0 without it",
            "env": "Names of variables that workers get, with commas; none without it",
            "memory": "Megabytes of the object store of a new cluster; 200 without it",
        }
    )

    @contextmanager
    def start(self, job: Job, crew: Crew) -> Iterator[Pool]:
        """Join the cluster, or start one, and start the actors."""
        from lmedit_ray.actors import Actors
        from lmedit_ray.cluster import Wishes, join_cluster

        wishes = Wishes.read(crew)
        with join_cluster(wishes):
            actors = Actors(job, crew, wishes)
            try:
                actors.add(crew.workers[1])
                yield actors
            finally:
                actors.end()

    def describe(self) -> str:
        """The version of Ray, and the cluster in reach."""
        import tempfile

        found = os.environ.get("RAY_ADDRESS", "")
        noted = Path(tempfile.gettempdir()) / NOTED
        if not found and noted.is_file():
            found = noted.read_text(encoding="utf-8").strip()
        cluster = f"cluster at {found}" if found else "no cluster in reach"
        return f"ray {version('ray')}; {cluster}"


executor = RayExecutor()
