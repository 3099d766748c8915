"""The tables of a run's database, and the files beside it."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, method TEXT NOT NULL, case_id TEXT NOT NULL, payload TEXT NOT NULL,
    seconds REAL, mebibytes REAL
);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, worker TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
WORKER = re.compile("[0-9a-f]{32}")
"""The name of a worker."""
LOGS = "workers"
"""The folder of a run for locks, and for what workers print."""
RUN_FILES = ("results.json", "cases.json", LOGS)
"""The other files of a run, next to its database."""


def files_of_others(folder: Path) -> str | None:
    """The first of `RUN_FILES` in *folder*; None if there is none, or if a worker just began.

    A worker makes its lock before the database.
    """
    found = next((name for name in RUN_FILES if os.path.lexists(folder / name)), None)
    if found == LOGS and (folder / found).is_dir():
        names = os.listdir(folder / found)
        if all(WORKER.fullmatch(name.removesuffix(".lock")) for name in names):
            return None
    return found


def switch_journal(database: sqlite3.Connection, kind: str, seconds: float) -> None:
    """Give *database* a journal of the *kind*; wait up to *seconds* for others who use it.

    SQLite itself does not wait here: it fails at once if another process writes or switches too.
    Raises `sqlite3.Error` if that is not possible.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            database.execute(f"PRAGMA journal_mode={kind}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return
