"""Other processes that share a run's work. Each loads its own model."""

from __future__ import annotations

import os
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from lmedit.cli.common import note
from lmedit.executors.children import become_worker, end_workers
from lmedit.executors.signals import Stopped, signals_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def worker_processes(workers: int, work: Callable[[], object]) -> Iterator[None]:
    """Run *work* in `workers - 1` other processes during the block, then stop them.

    *work* is pickled and sent to each process. The processes share the CPU threads equally. If a
    process dies, another one takes over its task.
    """
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    spawn = get_context("spawn")
    others = [
        spawn.Process(target=_help, args=(work, threads), daemon=True) for _ in range(workers - 1)
    ]
    if others:
        torch.set_num_threads(threads)
    for other in others:
        other.start()
    try:
        yield
    finally:
        end_workers(others)


def _help(work: Callable[[], object], threads: int) -> None:
    """Run *work* in a worker process. On an error, print one line; the others continue."""
    import torch
    from transformers.utils import logging

    become_worker()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        with signals_end():  # not an exit: the guard of a hook would take that for its failure
            work()
    except Stopped:
        pass
    except Exception as error:  # noqa: BLE001
        note(f"a worker stopped; the others continue: {' '.join(str(error).split())}")
