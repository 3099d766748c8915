"""The SQLite database of a run. A task is stored in one transaction, or not at all.

The key of a task is the digest of everything that determines its result. Processes that share a
run claim a task before they work on it. A claim is valid while its process holds a lock file. The
operating system releases the lock when the process ends, even if it crashes.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from filelock import FileLock, Timeout

from lmedit.compare.conflicts import tell_conflict
from lmedit.compare.run_folder import LOGS, SCHEMA, WORKER, files_of_others, switch_journal
from lmedit.errors import RunError
from lmedit.executors import Finished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FILE = "run.sqlite"
WAIT_SECONDS = 60.0


Stored = Finished
"""A finished task, as the store keeps it."""
VERSION = 1
"""The number of `SCHEMA`, in the database's user_version; databases before it have 0."""
COLUMNS = "key, method, case_id, payload, seconds, mebibytes"
ALL = f"SELECT {COLUMNS} FROM results ORDER BY key"  # noqa: S608
FACTS = "SELECT name, value FROM facts ORDER BY name"
ONE = f"SELECT {COLUMNS} FROM results WHERE key = ?"  # noqa: S608
AT_ONCE = 500
"""How many keys a query asks for at once."""
LARGE = ("wal_autocheckpoint=32768", "cache_size=-131072")
"""Settings for a million results: 128 MiB of the log before it is copied, 128 MiB of cache."""
SYNC_SECONDS = 0.5
"""How long after a wait for the disk the store does not wait again."""


def _check_version(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` if a newer lmedit wrote *database*; else note its version."""
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise sqlite3.DatabaseError(f"it has schema {found}, and this lmedit knows {VERSION}")
    if found < VERSION:
        database.execute(f"PRAGMA user_version = {VERSION}")


def _read_row(row: tuple[Any, ...]) -> Stored:
    """The result in *row*; raises `sqlite3.DatabaseError` if it has other kinds of values."""
    texts, numbers = row[:4], row[4:]
    if not all(isinstance(value, str) for value in texts) or not all(
        value is None or (isinstance(value, int | float) and math.isfinite(value))
        for value in numbers
    ):
        raise sqlite3.DatabaseError(f"the result {str(row[0])[:SHORT_KEY]!r} is damaged")
    return Stored(*row)


INTO = "INTO results VALUES (?, ?, ?, ?, ?, ?)"
SHORT_KEY = 12


def _row_of(result: Stored) -> tuple[Any, ...]:
    r = result
    return r.key, r.method, r.case_id, r.payload, r.seconds, r.mebibytes


def read_results(folder: Path) -> list[Stored]:
    """All results of the run in *folder*, sorted by key. Nothing is written, not even a lock.

    Raises `RunError` if the database cannot be read.
    """
    return list(iterate_results(folder))


def iterate_results(folder: Path) -> Iterator[Stored]:
    """As `read_results`, one after the other."""
    with _reading(folder) as database:
        for row in database.execute(ALL):
            yield _read_row(row)


def read_run_facts(folder: Path) -> dict[str, str]:
    """The facts of the run in *folder* (`compare.facts`); empty if it was not planned.

    Raises `RunError` if the database cannot be read.
    """
    with _reading(folder) as database:
        return _facts_in(database)


def _facts_in(database: sqlite3.Connection) -> dict[str, str]:
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone():
        return {}
    return {str(name): str(value) for name, value in database.execute(FACTS)}


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """The database of the run in *folder*, for reading; raises `RunError` if it cannot be read."""
    path = (folder / FILE).resolve()
    beside = {end: path.with_name(f"{FILE}-{end}").exists() for end in ("wal", "journal")}
    # Without a journal beside it nobody writes, and a folder without write access can be read.
    how = "mode=ro" if beside["wal"] else "mode=ro&immutable=1"
    if beside["journal"]:
        how = "mode=rw"  # a killed writer left it: SQLite must take a half transaction back
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)) as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found > VERSION:
                what = f"it has schema {found}, and this lmedit knows {VERSION}"
                raise sqlite3.DatabaseError(what)
            yield database
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot open the run in {folder}: {error}; run compare again") from error


class RunStore:
    """The results of a run in its folder; use it in a ``with`` statement."""

    def __init__(self, folder: Path, *, shard: bool = False) -> None:
        """Open the run in *folder*, or start one; raises `RunError` if that is not possible.

        With *shard*, the new run is a shard, whose folder may lie on a network file system. A
        write-ahead log does not work there, so SQLite gets a rollback journal.
        """
        self.path = folder / FILE
        self.worker = uuid.uuid4().hex
        self._waits, self._wait_at = True, 0.0
        self._locks = folder / LOGS
        other = None if self.path.exists() else files_of_others(folder)
        if other and not self.path.exists():  # not made by another worker meanwhile
            raise RunError(
                f"{folder} is not a run of lmedit and holds {other}, which would be replaced; give "
                "another --run"
            )
        with self._guarded("open"):
            self._locks.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._locks / f"{self.worker}.lock")
            self._lock.acquire()
            self._database = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            self._logs = not shard and "shard" not in _facts_in(self._database)
            kind = "WAL" if self._logs else "DELETE"
            switch_journal(self._database, kind, WAIT_SECONDS)
            for setting in ("synchronous=FULL", *LARGE):
                self._database.execute(f"PRAGMA {setting}")
            if self._database.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the database fails its own check")
            _check_version(self._database)
            self._file = os.stat(self.path).st_ino
            self._database.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self._check_there()

    def _check_there(self) -> None:
        """Raise `RunError` if somebody deleted or replaced the database meanwhile."""
        try:
            there = os.stat(self.path).st_ino == self._file
        except OSError:
            there = False
        if not there:
            raise RunError(
                f"the run folder {self.path.parent} was deleted meanwhile; run compare again"
            )

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
            row = self._database.execute(ONE, (key,)).fetchone()
            return _read_row(row) if row else None

    def left_of(self, keys: Sequence[str]) -> set[str]:
        """Those of *keys* whose tasks are not finished."""
        with self._guarded("read"):
            return {*keys} - {row[0] for row in self._rows_of(keys, "key")}

    def claim(self, key: str) -> bool:
        """Claim the task *key* for this process; False if it is done or another process has it."""
        return bool(self.claim_all([key]))

    def claim_all(self, keys: Sequence[str]) -> set[str]:
        """Claim the tasks *keys* in one transaction; return those that this process has now.

        Finished tasks are not claimed. The claim of a process that has ended is taken over.
        """
        with self._transaction(lasting=False):
            free = self.left_of(keys)
            owners = self._rows_of(sorted(free), "key, worker", "claims")
            free -= {key for key, owner in owners if owner != self.worker and self._alive(owner)}
            rows = [(key, self.worker) for key in sorted(free)]
            self._database.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", rows)
        return free

    def left_behind(self, key: str) -> bool:
        """Whether a process that has ended had begun the task *key*."""
        with self._guarded("read"):
            owner = self._one("SELECT worker FROM claims WHERE key = ?", key)
            return owner not in {None, self.worker} and not self._alive(str(owner))

    def forget_ended(self) -> None:
        """Delete the claims of processes that have ended, so that their tasks are free again."""
        with self._transaction():
            owners = [row[0] for row in self._database.execute("SELECT worker FROM claims")]
            gone = {owner for owner in owners if owner != self.worker and not self._alive(owner)}
            self._database.executemany(
                "DELETE FROM claims WHERE worker = ?", [(owner,) for owner in gone]
            )

    def put(self, result: Stored) -> None:
        """Store *result* and release its claim in one transaction; the first result stays."""
        self._check_there()
        with self._transaction():
            self._database.execute(f"INSERT OR IGNORE {INTO}", _row_of(result))
            self._database.execute("DELETE FROM claims WHERE key = ?", (result.key,))

    def add(self, results: Sequence[Stored]) -> None:
        """Store *results* and release their claims in one transaction.

        A result that is there already must have the same payload; else nothing is stored. Raises
        `RunError`, which shows both payloads.
        """
        self._check_there()
        with self._transaction():
            known = {row[0]: _read_row(row) for row in self._rows_of([r.key for r in results])}
            for result in results:
                if known.setdefault(result.key, result).payload != result.payload:
                    raise RunError(tell_conflict(known[result.key], result))
            self._database.executemany(f"INSERT OR IGNORE {INTO}", map(_row_of, results))
            keys = [(result.key,) for result in results]
            self._database.executemany("DELETE FROM claims WHERE key = ?", keys)

    def _rows_of(
        self, keys: Sequence[str], columns: str = COLUMNS, table: str = "results"
    ) -> Iterator[tuple[Any, ...]]:
        """The *columns* of the rows of *keys* in *table*, as far as they are there."""
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT {columns} FROM {table} WHERE key IN ({marks})"  # noqa: S608
            yield from self._database.execute(query, some)

    def put_all(self, results: Iterable[Stored]) -> int:
        """Store *results* in one transaction, and replace those that are there; return how many.

        The caller has checked that results of one key have one payload.
        """
        self._check_there()
        with self._transaction():
            done = self._database.executemany(f"INSERT OR REPLACE {INTO}", map(_row_of, results))
            return done.rowcount

    def note(self, facts: Mapping[str, str]) -> None:
        """Store *facts*; raises `RunError` if the run has another value of one of them."""
        with self._transaction():
            rows = sorted(facts.items())
            self._database.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", rows)
            known = _facts_in(self._database)
        for name, value in rows:
            if known[name] != value:
                raise RunError(
                    f"the run in {self.path.parent} has another {name}; give another folder"
                )

    def drop(self, keys: Sequence[str]) -> None:
        """Delete the results of *keys*."""
        with self._transaction():
            self._database.executemany(
                "DELETE FROM results WHERE key = ?", [(key,) for key in keys]
            )

    def all(self) -> list[Stored]:
        """All finished tasks, sorted by key."""
        with self._guarded("read"):
            return [_read_row(row) for row in self._database.execute(ALL)]

    def _one(self, query: str, key: str) -> str | None:
        row = self._database.execute(query, (key,)).fetchone()
        return str(row[0]) if row else None

    def _alive(self, worker: str) -> bool:
        """Whether the process *worker* still holds its lock file."""
        if not WORKER.fullmatch(worker):
            return False  # no process of lmedit wrote this claim; no path is made of it
        path = self._locks / f"{worker}.lock"
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False

    @contextmanager
    def _transaction(self, *, lasting: bool = True) -> Iterator[None]:
        """One transaction, which a crash of this process does not lose.

        A crash of the whole machine loses no more than `SYNC_SECONDS` of *lasting* ones: so often
        at most they wait for the disk. Other ones never wait.
        """
        with self._guarded("write"):
            now = time.monotonic()
            if self._logs and (waits := lasting and now >= self._wait_at) is not self._waits:
                self._waits = waits
                self._database.execute(f"PRAGMA synchronous={'FULL' if waits else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
            if self._waits:
                self._wait_at = time.monotonic() + SYNC_SECONDS

    @contextmanager
    def _guarded(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise RunError(
                f"cannot {verb} the run in {self.path.parent}: {error}; finished results are kept; "
                "repair the folder or give another --run"
            ) from error
