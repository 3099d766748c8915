"""The SQLite database of a run. A task is stored in one transaction, or not at all.

The key of a task is the digest of everything that determines its result. Processes that share a
run claim a task before they work on it. A claim is valid while its process holds a lock file. The
operating system releases the lock when the process ends, even if it crashes.
"""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

from filelock import FileLock, Timeout

from lmedit.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FILE = "run.sqlite"
WAIT_SECONDS = 60.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, method TEXT NOT NULL, case_id TEXT NOT NULL, payload TEXT NOT NULL,
    seconds REAL, mebibytes REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, worker TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stored:
    """A finished task: its result as JSON (a key always has the same bytes), seconds and memory."""

    key: str
    method: str
    case_id: str
    payload: str
    seconds: float | None
    mebibytes: float | None = None


class RunStore:
    """The results of a run in its folder; use it in a ``with`` statement."""

    def __init__(self, folder: Path) -> None:
        """Open the run in *folder*, or start one; raises `RunError` if that is not possible."""
        self.path = folder / FILE
        self.worker = uuid.uuid4().hex
        self._locks = folder / "workers"
        with self._guarded("open"):
            self._locks.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._locks / f"{self.worker}.lock")
            self._lock.acquire()
            self._database = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            if self._database.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the database fails its own check")
            self._database.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the claims of this process, and close the database."""
        with self._guarded("close"):
            self._database.execute("DELETE FROM claims WHERE worker = ?", (self.worker,))
            self._database.close()
        self._lock.release()
        (self._locks / f"{self.worker}.lock").unlink(missing_ok=True)

    def get(self, key: str) -> Stored | None:
        """The result of the task *key*; None if the task is not finished."""
        with self._guarded("read"):
            row = self._database.execute("SELECT * FROM results WHERE key = ?", (key,)).fetchone()
        return Stored(*row) if row else None

    def claim(self, key: str) -> bool:
        """Claim the task *key* for this process; False if it is done or another process has it.

        The claim of a process that has ended is taken over.
        """
        with self._transaction():
            if self._one("SELECT 1 FROM results WHERE key = ?", key):
                return False
            owner = self._one("SELECT worker FROM claims WHERE key = ?", key)
            if owner and owner != self.worker and self._alive(owner):
                return False
            self._database.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, self.worker)
            )
        return True

    def put(self, result: Stored) -> None:
        """Store *result* and release its claim in one transaction; the first result stays."""
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)",
                astuple(result),
            )
            self._database.execute("DELETE FROM claims WHERE key = ?", (result.key,))

    def drop(self, keys: Sequence[str]) -> None:
        """Delete the results of *keys*."""
        with self._transaction():
            self._database.executemany(
                "DELETE FROM results WHERE key = ?", [(key,) for key in keys]
            )

    def all(self) -> list[Stored]:
        """All finished tasks, sorted by key."""
        with self._guarded("read"):
            rows = self._database.execute("SELECT * FROM results ORDER BY key").fetchall()
        return [Stored(*row) for row in rows]

    def _one(self, query: str, key: str) -> str | None:
        row = self._database.execute(query, (key,)).fetchone()
        return str(row[0]) if row else None

    def _alive(self, worker: str) -> bool:
        """Whether the process *worker* still holds its lock file."""
        path = self._locks / f"{worker}.lock"
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded("write"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _guarded(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RunError(
                f"cannot {verb} the run in {self.path.parent}: {error}; finished results are kept; "
                "repair the folder or give another --run"
            ) from error
