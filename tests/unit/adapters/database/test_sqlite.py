"""Which of SQLite's errors are a full disk."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from adapters.database.backend import Fault
from adapters.database.sqlite import MIN_FREE_BYTES, SqliteFile

IOERR_SHMSIZE = sqlite3.SQLITE_IOERR | 19 << 8
IOERR_WRITE = sqlite3.SQLITE_IOERR | 3 << 8


@pytest.mark.parametrize(
    ("code", "free", "fault"),
    [
        (sqlite3.SQLITE_FULL, MIN_FREE_BYTES, Fault.DISK_FULL),
        (IOERR_SHMSIZE, MIN_FREE_BYTES - 1, Fault.DISK_FULL),
        (IOERR_WRITE, 0, Fault.DISK_FULL),
        (IOERR_WRITE, MIN_FREE_BYTES, Fault.OTHER),
        (sqlite3.SQLITE_BUSY, 0, Fault.OTHER),
    ],
)
def test_an_io_error_on_a_disk_without_room_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, free: int, fault: Fault
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    original = sqlite3.OperationalError("disk I/O error")
    original.sqlite_errorcode = code
    assert SqliteFile(tmp_path / "a.db").fault(sa.exc.OperationalError("INSERT", {}, original)) is fault


def test_an_error_of_the_statement_is_no_fault_of_the_database(tmp_path: Path) -> None:
    error = sa.exc.IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE"))
    assert SqliteFile(tmp_path / "a.db").fault(error) is None
