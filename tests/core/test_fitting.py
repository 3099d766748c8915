"""Work in parts that fit into memory."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.memory import in_parts, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_parts_have_the_asked_size() -> None:
    assert list(in_parts(list, range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_parts(list, [], 3)) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_a_part_that_does_not_fit_is_halved_and_nothing_is_lost(limit: int) -> None:
    tried = []

    def work(part: Sequence[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return list(part)

    found = list(in_parts(work, range(20), 16))
    assert [item for part in found for item in part] == list(range(20))
    assert max(len(part) for part in found) <= limit
    assert [size for size in tried if size > limit] == sorted(
        {size for size in tried if size > limit}, reverse=True
    )  # each once


def test_one_item_that_does_not_fit_and_other_errors_pass_through() -> None:
    def never(part: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(part: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parts(never, range(4), 4))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_parts(wrong, range(4), 4))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_allocators_of_all_devices_are_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_worker_reuses_freed_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < before / 4


FAULTS = """
import resource, torch
from lmedit.executors.children import keep_freed_memory
def count():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
before = count()
keep_freed_memory()
count()
print(before, count())
"""
"""Count the pages that the system clears for twenty tensors of 40 megabytes.

The first twenty after the call do not count: depending on where the heap lies, up to seven of them
take new memory.
"""
