"""Notice that the cluster ended. Ray itself lets its driver wait, and ends it after a minute.

The processes of a cluster that was started here are children of the driver. A joined cluster has a
raylet on this machine, which listens at a socket, and a head, which listens at an address.
"""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from lmedit.errors import RunError, how_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEEDED = ("raylet", "gcs_server")
"""Ray's processes that a run cannot do without, by Ray's names."""
CHECK_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
"""How long the head of a joined cluster may be silent. It may start again meanwhile."""


@dataclass
class Watch:
    """Raises an error when the cluster ended. A check costs no call of Ray."""

    run: Path | None
    """The run folder, which the error names; None: it is not known."""
    ended: bool = False
    _next: float = 0.0
    _silent_since: float | None = None

    def check(self, *, now: bool = False) -> None:
        """Raise `RunError` if the cluster ended. Looks once a second, or *now*."""
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + CHECK_SECONDS
        why = self._what_ended()
        if why:
            self.ended = True
            raise RunError(f"the Ray cluster ended ({why}); {self._remedy()}")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn an error of Ray in the block into one line of ours."""
        try:
            yield
        except RayError as error:
            self.check(now=True)
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise RunError(f"Ray failed ({why}); {self._remedy()}") from error

    def _remedy(self) -> str:
        again = "the same --run" if self.run is None else f"--run {self.run}"
        return f"start again with {again}; results are kept"

    def _what_ended(self) -> str:
        """The process that ended, and how; empty if none did."""
        from ray._private import worker

        node: Any = worker._global_node
        if node is None:  # a driver without a node of its own
            return ""
        for kind, process in node.dead_processes():
            if kind in NEEDED:
                return f"{kind}: {how_ended(process.returncode)}"
        return "" if node.all_processes else self._what_left(node)

    def _what_left(self, node: Any) -> str:
        """The same for a cluster that was joined."""
        if _is_left(str(node.raylet_socket_name)):
            return "its raylet on this machine does not listen"
        if _answers(str(node.gcs_address)):
            self._silent_since = None
            return ""
        self._silent_since = self._silent_since or time.monotonic()
        if time.monotonic() - self._silent_since < PATIENCE_SECONDS:
            return ""
        return f"its head at {node.gcs_address} does not answer"


def _is_left(place: str) -> bool:
    """Whether *place* is the path of a socket at which no process listens."""
    family = getattr(socket, "AF_UNIX", None)
    if family is None or not place.startswith("/"):
        return False
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(CHECK_SECONDS)
        try:
            line.connect(place)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # it is busy
            return False
    return False


def _answers(address: str) -> bool:
    """Whether a process listens at *address*, a host and a port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CHECK_SECONDS):
            return True
    except (OSError, ValueError):
        return False
