"""The SQLite database of a run. A task is stored in one transaction, or not at all.

The key of a task is the digest of everything that determines its result. Processes that share a
run claim a task before they work on it. A claim is valid while its process holds a lock file. The
operating system releases the lock when the process ends, even if it crashes.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import uuid
from contextlib import closing, contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from filelock import FileLock, Timeout

from lmedit.errors import RunError
from lmedit.executors import Finished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FILE = "run.sqlite"
WAIT_SECONDS = 60.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, method TEXT NOT NULL, case_id TEXT NOT NULL, payload TEXT NOT NULL,
    seconds REAL, mebibytes REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, worker TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


Stored = Finished
"""A finished task, as the store keeps it."""
VERSION = 1
"""The number of `SCHEMA`, in the database's user_version; databases before it have 0."""
ALL = "SELECT key, method, case_id, payload, seconds, mebibytes FROM results ORDER BY key"
FACTS = "SELECT name, value FROM facts ORDER BY name"
ONE = "SELECT key, method, case_id, payload, seconds, mebibytes FROM results WHERE key = ?"


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
SHOWN_OF_PAYLOAD = 160
"""How many characters of a payload an error shows, around the first difference."""


def _tell_conflict(known: Stored, other: Stored) -> str:
    """The error that one task has two results, with both."""
    one, two = known.payload, other.payload
    pairs = enumerate(zip(one, two, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))
    start = max(0, same - SHOWN_OF_PAYLOAD // 2)
    shown = [text[start : start + SHOWN_OF_PAYLOAD] for text in (one, two)]
    return (
        f"task {known.key[:SHORT_KEY]} ({known.method}, case {known.case_id}) has two different "
        f"results: ...{shown[0]}... and ...{shown[1]}...; give all workers the same versions, "
        "device and number of threads, and another --run"
    )


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


WORKER = re.compile("[0-9a-f]{32}")
"""The name of a worker."""
LOGS = "workers"
"""The folder of a run for locks, and for what workers print."""
RUN_FILES = ("results.json", "cases.json", LOGS)
"""The other files of a run, next to its database."""


def _files_of_others(folder: Path) -> str | None:
    """The first of `RUN_FILES` in *folder*; None if there is none, or if a worker just began.

    A worker makes its lock before the database.
    """
    found = next((name for name in RUN_FILES if os.path.lexists(folder / name)), None)
    if found == LOGS and (folder / found).is_dir():
        names = os.listdir(folder / found)
        if all(WORKER.fullmatch(name.removesuffix(".lock")) for name in names):
            return None
    return found


class RunStore:
    """The results of a run in its folder; use it in a ``with`` statement."""

    def __init__(self, folder: Path, *, shard: bool = False) -> None:
        """Open the run in *folder*, or start one; raises `RunError` if that is not possible.

        With *shard*, the new run is a shard, whose folder may lie on a network file system. A
        write-ahead log does not work there, so SQLite gets a rollback journal.
        """
        self.path = folder / FILE
        self.worker = uuid.uuid4().hex
        self._locks = folder / LOGS
        other = None if self.path.exists() else _files_of_others(folder)
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
            kind = "DELETE" if shard or "shard" in _facts_in(self._database) else "WAL"
            self._database.execute(f"PRAGMA journal_mode={kind}")
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
            self._database.execute(f"INSERT OR IGNORE {INTO}", astuple(result))
            self._database.execute("DELETE FROM claims WHERE key = ?", (result.key,))

    def add(self, results: Sequence[Stored]) -> None:
        """Store *results* and release their claims in one transaction.

        A result that is there already must have the same payload; else nothing is stored. Raises
        `RunError`, which shows both payloads.
        """
        self._check_there()
        with self._transaction():
            for result in results:
                row = self._database.execute(ONE, (result.key,)).fetchone()
                if row and (known := _read_row(row)).payload != result.payload:
                    raise RunError(_tell_conflict(known, result))
                self._database.execute(f"INSERT OR IGNORE {INTO}", astuple(result))
                self._database.execute("DELETE FROM claims WHERE key = ?", (result.key,))

    def put_all(self, results: Iterable[Stored]) -> int:
        """Store *results* in one transaction, and replace those that are there; return how many.

        The caller has checked that results of one key have one payload.
        """
        self._check_there()
        with self._transaction():
            rows = map(astuple, results)
            done = self._database.executemany(f"INSERT OR REPLACE {INTO}", rows)
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
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise RunError(
                f"cannot {verb} the run in {self.path.parent}: {error}; finished results are kept; "
                "repair the folder or give another --run"
            ) from error
