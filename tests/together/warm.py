"""Python processes that begin with torch and transformers imported, to save their seconds.

`interpreter(python, environment)` starts a server in *python*. The server imports the libraries
below and nothing of ours. A call is a small client: it sends its arguments, its folder, its
variables and its three streams. The server forks. The child reads the `.pth` files and PYTHONPATH
anew and runs `-c CODE` or `-m MODULE`, as a fresh interpreter does. The client ends with the
child's exit code. Several calls may run at once. At its end a child calls what is registered for
the end, but frees no modules: with torch that alone takes half a second. If a child asks
`multiprocessing` for a fork server, a copy of the child as it began becomes this server.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIBRARIES = ("torch", "transformers.modeling_utils", "transformers.models.gpt2.modeling_gpt2")
OURS = "lmedit"
STREAMS = 3
SITES = "WARM_SITES"
"""A variable of a call: more folders of packages, as those of a virtual environment."""
SECONDS_TO_START = 300
SECONDS_TO_RUN = 1800
"""The longest time of one call. What calls it has a shorter limit, and says what it waited for."""
SECONDS_TO_ASK = 60
FORK_SERVER = "from multiprocessing.forkserver import main"
"""The beginning of the code with which `multiprocessing` starts a fork server."""
LONGEST_CODE = 1 << 17
HIGH = 500
"""The copy keeps the server's files above this number while it gives them the right numbers."""


@contextmanager
def interpreter(python: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield what stands for *python* in commands: the call of a server, or itself without fork."""
    if sys.platform != "linux":
        yield (str(python),)
        return
    with TemporaryDirectory(prefix="warm") as folder:
        address = f"{folder}/door"
        command = [str(python), __file__, "serve", address]
        server = subprocess.Popen(command, env={**environment}, stdin=subprocess.PIPE)
        try:
            yield (sys.executable, "-I", "-S", __file__, "call", address)
        finally:
            server.terminate()
            server.communicate(timeout=SECONDS_TO_START)


def call(address: str, *arguments: str) -> int:
    """Ask the server at *address* to run *arguments*; return the exit code."""
    asked = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    line = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + SECONDS_TO_START
    while True:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            line.connect(address)
            break
        if time.monotonic() > until:
            raise TimeoutError(f"no server at {address}")
        time.sleep(0.05)
    line.settimeout(SECONDS_TO_RUN)
    with line:
        told = json.dumps(asked).encode()
        socket.send_fds(line, [len(told).to_bytes(8, "big")], list(range(STREAMS)))
        line.sendall(told)
        return int(line.makefile().read())


def serve(address: str) -> list[str]:
    """Answer calls until stdin closes; in each child, return the arguments that it is to run."""
    for name in LIBRARIES:
        importlib.import_module(name)
    early = [name for name in sys.modules if name.startswith(OURS)]
    assert not early, early
    gc.freeze()  # a child that ends would else visit, and so copy, all that was imported
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen()
    while True:
        if sys.stdin in select.select([door, sys.stdin], [], [])[0]:
            sys.exit()  # whoever started the server is gone
        line, _ = door.accept()
        streams: list[int] = []
        line.settimeout(SECONDS_TO_ASK)  # a caller that died must not stop the others
        try:
            head, streams, *_ = socket.recv_fds(line, 8, STREAMS)
            told = line.makefile("rb").read(int.from_bytes(head, "big"))
        except OSError:
            close_all(streams)
            line.close()
            continue
        line.settimeout(None)
        if os.fork() == 0:
            door.close()
            child = os.fork()
            if child == 0:
                line.close()
                return arrange(json.loads(told), streams)
            close_all(streams)
            _, status = os.waitpid(child, 0)
            line.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
            os._exit(0)
        close_all(streams)
        line.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # one that has waited for its child


def close_all(streams: list[int]) -> None:
    """Close the caller's streams; the child has them."""
    for stream in streams:
        os.close(stream)


def arrange(asked: dict[str, Any], streams: list[int]) -> list[str]:
    """Take the caller's streams, folder and variables; return its arguments."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sites = [sysconfig.get_path("purelib"), *os.environ.pop(SITES, "").split(os.pathsep)]
    for folder in filter(None, sites):
        site.addsitedir(folder)  # also finds packages that were installed in the meantime
    first = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [part for part in first if part and part not in sys.path]
    importlib.invalidate_caches()
    arguments: list[str] = asked["arguments"]
    return arguments


def become_fork_server() -> str | None:
    """Let a copy of this process wait until `multiprocessing` starts a fork server.

    Python would start the server anew, and the server would import the libraries again. Return the
    server's code in the copy, and None in this process. The copy ends with this process.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copy = os.fork()
    if copy == 0:
        here.close()
        return wait_for_code(there)
    there.close()
    start = util.spawnv_passfds  # type: ignore[attr-defined]

    def start_server(path: bytes, arguments: list[str], files: list[int]) -> int:
        if not arguments[-1].startswith(FORK_SERVER) or here.fileno() < 0:
            number: int = start(path, arguments, files)
            return number
        given = [*filter(is_open, range(STREAMS)), *files]
        socket.send_fds(here, [json.dumps([given, arguments[-1]]).encode()], given)
        here.close()
        return copy

    util.spawnv_passfds = start_server  # type: ignore[attr-defined]
    return None


def is_open(file: int) -> bool:
    """Whether *file* is the number of an open file: a new server has the streams of this moment."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


def wait_for_code(line: socket.socket) -> str:
    """Wait for a server's code and its open files; end this process if its parent ends first."""
    import fcntl

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server does the same
    told, files, *_ = socket.recv_fds(line, LONGEST_CODE, 8 + STREAMS)
    if not told:
        os._exit(0)
    numbers, code = json.loads(told)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    close_all(files)
    line.close()
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    close_all(high)
    return str(code)


def run(kind: str, what: str, *arguments: str) -> None:
    """Run `-c CODE` or `-m MODULE` with the caller's arguments."""
    sys.path[0] = "" if kind == "-c" else str(Path.cwd())
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        raise ValueError(f"{kind} is neither -c nor -m")


def end(code: int) -> NoReturn:
    """End the process with *code* as Python does, but without freeing its modules."""
    with suppress(OSError, ValueError):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)  # Python tells that a stream cannot be written


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "call":
        sys.exit(call(*rest))
    asked = serve(*rest)
    if (server := become_fork_server()) is not None:
        asked = ["-c", server]
    try:
        run(*asked)
    except SystemExit as left:
        if not isinstance(left.code, int | None):
            raise
        end((left.code or 0) & 0xFF)
    end(0)
