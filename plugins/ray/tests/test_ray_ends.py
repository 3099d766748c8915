"""A driver or a whole cluster of Ray ends in the middle of a run: nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import recorded

from lmedit.compare.driver import Hands
from lmedit.compare.store import FILE, read_results
from lmedit.errors import RunError
from lmedit.executors import Job
from lmedit.executors.engine import Engine
from lmedit.testing.executors import TrialRun, begin_trial, lasting_rows, runs
from lmedit_ray.watch import _answers, _is_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmedit.executors import Group, Reply

WHOLE = "LMEDIT_RAY_KILLS" in os.environ
"""Whether the unabridged tests run: actors then load the model, and do not replay results."""
KILLS = int(os.environ.get("LMEDIT_RAY_KILLS", "2"))
"""The unabridged tests have ten: LMEDIT_RAY_KILLS=10. Then five drivers are killed."""
VICTIMS: tuple[str, ...] = (*["driver"] * 5, "raylet")
if WHOLE:
    VICTIMS = (*["driver"] * (KILLS // 2), "raylet", "gcs_server")
"""Who is killed, one after the other, in the same run."""
KINDS = tuple(f"push-{number}" for number in range((len(VICTIMS) + 1) // 2))
"""Methods: each has five groups, and no start finishes more than two before its end."""
CASES = 40
SECONDS = 120.0
"""The longest time to wait for a driver or for the end of Ray's processes."""
DRIVER = """
import os, sys
from functools import partial
from pathlib import Path
from transformers.utils import logging
from lmedit.compare.driver import Hands
from lmedit.errors import LmeditError
from lmedit.errors import RunError
from lmedit.executors import Job
from lmedit.executors.engine import Engine
from lmedit.testing.executors import TrialRun

logging.disable_progress_bar()
folder, cases, *kinds = sys.argv[1:]
given = (Path(folder), kinds, int(cases), os.getpid(), 0.1)
trial = TrialRun(*given)
worker = trial.worker()
job = Job(partial(TrialRun.load, *given), worker)
try:
    with Engine("ray", (2, 2)).start(job, given[0] / "run" / "workers") as pool:
        trial.compare("run", Hands(worker, pool))
except LmeditError as error:
    sys.exit(f"Error: {error}")
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def processes_of_ray() -> dict[int, str]:
    """The numbers of the processes of Ray on this machine, and what each is.

    Its agents are left out. They hold no work, and end by themselves after a minute.
    """
    found = {}
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            name = place.read_bytes().split(b"\0")[0].rpartition(b"/")[2].decode()
            worker = name.startswith("ray::") and not name.endswith("Agent")
            if worker or name in {"raylet", "gcs_server"}:
                found[int(place.parent.name)] = name
    return found


def parent_of(process: int) -> int:
    """The number of the parent of *process*; 0 if it has ended."""
    with suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return int(state.rpartition(")")[2].split()[1])
    return 0


def wait_until(true: Callable[[], object]) -> None:
    """Wait until *true* returns a true value."""
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until, f"{true} stays false"
        time.sleep(0.05)


def count_results(folder: Path) -> int:
    """How many results the run in *folder* has; 0 while its database is being made."""
    with suppress(RunError):
        return len(read_results(folder)) if (folder / FILE).is_file() else 0
    return 0


@contextmanager
def begun_driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver with a cluster of its own, which stored a result."""
    kept = count_results(folder / "run")
    command = [sys.executable, "-c", DRIVER, str(folder), str(CASES), *KINDS]
    if not WHOLE:
        run, told = folder / "run", folder / "plain.json"
        command = [sys.executable, recorded.__file__, str(told), str(run), "0.05"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as driver:
        try:
            wait_until(lambda: count_results(folder / "run") > kept or driver.poll() is not None)
            assert driver.poll() is None, driver.communicate(timeout=SECONDS)
            yield driver
        finally:
            driver.kill()


def test_who_is_killed_leaves_no_process_and_the_run_continues(tmp_path: Path) -> None:
    """If the raylet or the server of Ray is killed, the driver ends with one line."""
    given = (begin_trial(tmp_path), KINDS, CASES, os.getpid(), 0.0)
    plain = TrialRun(*given).compare("plain")
    recorded.record(tmp_path / "plain", tmp_path / "plain.json")
    kept: dict[str, str] = {}
    before = processes_of_ray()
    for victim in VICTIMS:
        with begun_driver(tmp_path) as driver:
            if victim == "driver":
                driver.kill()
            else:
                (number,) = (
                    number
                    for number, name in processes_of_ray().items()
                    if name == victim and parent_of(number) == driver.pid
                )
                os.kill(number, signal.SIGKILL)
            printed, told = driver.communicate(timeout=SECONDS)
        now = {each.key: each.payload for each in read_results(tmp_path / "run")}
        assert kept.items() < now.items()
        assert len(now) < CASES * (1 + len(KINDS)), "it was not in the middle"
        kept = now
        if victim != "driver":
            assert (driver.returncode, printed) == (1, "")
            assert told == (
                f"Error: the Ray cluster ended ({victim}: its process was ended by SIGKILL); "
                f"start again with --run {tmp_path / 'run'}; results are kept\n"
            )
    found = TrialRun(*given).compare("run")
    assert lasting_rows(found) == lasting_rows(plain)
    whole, once = (read_results(tmp_path / name) for name in ("run", "plain"))
    assert [(each.key, each.payload) for each in whole] == [(e.key, e.payload) for e in once]
    assert kept.items() <= {each.key: each.payload for each in whole}.items()
    wait_until(lambda: not any(map(runs, processes_of_ray().keys() - before.keys())))


def test_a_socket_that_nobody_serves_is_found(tmp_path: Path) -> None:
    """So the end of a raylet is seen that is not the driver's child."""
    with socket.socket(socket.AF_UNIX) as there, socket.create_server(("127.0.0.1", 0)) as head:
        there.bind(str(tmp_path / "raylet"))
        there.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert not _is_left(str(tmp_path / "raylet"))
        assert _answers(address)
    assert _is_left(str(tmp_path / "raylet"))
    assert _is_left(str(tmp_path / "never"))
    assert not _answers(address)


class NodeKilling:
    """A pool. When all its actors have loaded, it kills the raylet of a node."""

    def __init__(self, pool: Any, raylet: subprocess.Popen[bytes]) -> None:
        self.pool, self.raylet = pool, raylet

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        def take_and_kill(reply: Reply) -> None:
            take(reply)
            if all(seat.loading is None for seat in self.pool.seats):
                self.raylet.kill()
                self.raylet.wait(SECONDS)

        self.pool.run(groups, take_and_kill)


@pytest.mark.skipif(not WHOLE, reason="three raylets; unabridged: LMEDIT_RAY_KILLS=10")
def test_another_node_takes_over_the_work_of_one_that_is_killed(
    settings: None, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    given = (begin_trial(tmp_path), KINDS, CASES, os.getpid(), 0.1)
    trial = TrialRun(*given)
    plain = TrialRun(*given[:4]).compare("plain")
    worker, notes = trial.worker(), list[str]()
    with ExitStack() as stack:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        stack.callback(cluster.shutdown)
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        (raylet,) = nodes[0].all_processes["raylet"]
        engine = Engine("ray", (1, 2), (("address", cluster.address),))
        job = Job(partial(TrialRun.load, *given), worker)
        pool = stack.enter_context(engine.start(job, tmp_path / "run" / "workers", notes.append))
        found = trial.compare("run", Hands(worker, NodeKilling(pool, raylet.process)))
    assert raylet.process.poll() == -signal.SIGKILL
    assert any("its work is repeated" in note for note in notes)
    assert lasting_rows(found) == lasting_rows(plain)
    whole, once = (read_results(tmp_path / name) for name in ("run", "plain"))
    assert [(each.key, each.payload) for each in whole] == [(e.key, e.payload) for e in once]
