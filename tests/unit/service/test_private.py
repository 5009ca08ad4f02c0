"""Everything under the home is for its owner alone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.database import Database
from service.server.private import OTHERS, keep_private
from tests.support.adapters import make_base
from tests.support.gateway import held_port


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """As most machines have it; and as it was, afterwards."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(home: Path) -> dict[str, str]:
    """What others have rights to; whither a link leads is not the home's."""
    paths = [home, *home.rglob("*")]
    return {str(p): oct(p.lstat().st_mode) for p in paths if not p.is_symlink() and p.lstat().st_mode & OTHERS}


def test_a_home_that_is_open_is_closed_and_what_is_written_later_too(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "engine" / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    for path in (home / "hatrack.db", home / "hatrack.db-wal", home / "engine" / "deep" / "log", elsewhere / "base"):
        path.write_text("x")
    (home / "run.sh").write_text("x")
    (home / "run.sh").chmod(0o755)
    (home / "base").symlink_to(elsewhere)
    os.link(elsewhere / "base", home / "shared")
    changed = keep_private(home)
    (home / "shared").unlink()
    assert open_to_others(home) == {}
    assert changed == 7
    assert (home / "run.sh").stat().st_mode & 0o777 == 0o700  # the owner's own rights stay
    assert (elsewhere / "base").stat().st_mode & 0o777 == 0o644  # not the home's, though it has a name there
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    (home / "later").mkdir()
    (home / "later" / "file").write_text("x")
    assert open_to_others(home) == {}
    assert keep_private(home) == 0


def test_a_home_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    keep_private(tmp_path / "a" / "home")
    assert (tmp_path / "a" / "home").stat().st_mode & 0o777 == 0o700


async def test_the_database_is_its_owner_s_whatever_the_umask(tmp_path: Path) -> None:
    database = Database(tmp_path / "home" / "hatrack.db")
    await database.open()
    try:
        await database.run(lambda db: db.exec_driver_sql("CREATE TABLE t (x)"))
        found = {path.name for path in database.path.parent.iterdir()}
        assert {"hatrack.db", "hatrack.db-wal", "hatrack.db-shm"} <= found
        assert open_to_others(database.path.parent) == {}
    finally:
        await database.close()
    with sqlite3.connect(database.path) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_gateway_that_starts_closes_its_home(tmp_path: Path) -> None:
    """`hatrack up` as a process, without an engine."""
    home = tmp_path / "home"
    base = make_base(tmp_path / "base")
    home.mkdir()
    (home / "old").write_text("left by an older gateway")
    with held_port() as held:
        port = held.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HATRACK_")} | {
            "HATRACK_HOME": str(home),
            "HATRACK_BASE_MODEL": str(base),
            "HATRACK_ENGINE_URL": f"unix:{tmp_path / 'none.sock'}",
            "HATRACK_ENGINE_DEVICE": "cpu",
            "HATRACK_SAMPLES": "false",
            "HATRACK_TRAINER": "off",
            "HATRACK_PORT": str(port),
        }
        command = [sys.executable, "-m", "service.cli", "up"]
        gateway = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until_it_answers(f"http://127.0.0.1:{port}", gateway)
            key = (home / "admin.key").read_text().strip()
            upload: dict[str, Any] = {"data": {"purpose": "evals"}, "files": {"file": ("a.jsonl", b"{}")}}
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"http://127.0.0.1:{port}/v1/files", headers=headers, timeout=60, **upload).is_success
            made = {str(path.relative_to(home)) for path in home.rglob("*")}
            assert {"hatrack.db", "hatrack.db-wal", "admin.key", "key.secret", "files", "adapters"} <= made, made
            assert open_to_others(home) == {}
        finally:
            gateway.terminate()
            gateway.wait(240)


def until_it_answers(url: str, gateway: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert gateway.poll() is None, "the gateway did not start"
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", timeout=30).is_success:
                return
        time.sleep(0.05)
    raise AssertionError("the gateway does not answer")
