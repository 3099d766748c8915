"""One cluster for all tests of this folder; light classes go to the actors as bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.cluster_utils import Cluster

import lmedit.testing.executors
from lmedit.executors import Crew
from lmedit_ray.cluster import LEAST_MEGABYTES, SETTINGS, Wishes, join_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))

import recorded

HEAD = {
    "num_cpus": 2,
    "include_dashboard": False,
    "object_store_memory": LEAST_MEGABYTES * 2**20,
}


@pytest.fixture(scope="session")
def settings() -> None:
    """The variables of Ray that lmedit sets, before any node starts: no low priority of workers."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def cluster(settings: None) -> Iterator[Any]:
    """A cluster of two CPUs, which this process has joined. A test may add nodes.

    Its actors need not import torch for classes that do not use it.
    """
    for module in (lmedit.testing.executors, recorded):
        ray.cloudpickle.register_pickle_by_value(module)
    made = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        with join_cluster(Wishes.read(Crew((2, 2), {"address": made.address}))):
            yield made
    finally:
        made.shutdown()
