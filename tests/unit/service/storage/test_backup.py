"""A backup holds all that its databases name, whatever is written, deleted or killed while it is made."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.config import Settings
from service.storage import backup as backup_module
from service.storage.archive import check_members, read_manifest
from service.storage.backup import make_backup
from service.storage.errors import BackupError, NoRoom
from service.storage.references import References
from service.storage.restore import MARKER, restore
from tests.unit.service.storage.storage_home import ADMIN_KEY, FILE, RUN, STORE, StorageHome, in_child

QUIET = lambda _done, _total, _doing: None  # noqa: E731 (a callback)


def back_up(home: StorageHome, target: Path) -> Path:
    return make_backup(home.settings, target, QUIET).path


def restored(home: StorageHome, backup: Path, to: Path) -> StorageHome:
    other = home.at(to)
    restore(other.settings, backup, QUIET)
    return other


def meanwhile(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> list[References]:
    """Do something once, right after the gateway's database was copied; returns what each round's copy named."""
    rounds: list[References] = []
    original = backup_module.references

    def read(path: Path) -> References:
        rounds.append(original(path))
        if len(rounds) == 1:
            work()
        return rounds[-1]

    monkeypatch.setattr(backup_module, "references", read)
    monkeypatch.setattr(backup_module, "ROUND_PAUSE_S", 0)
    return rounds


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_everything_is_restored_in_another_place_as_it_was(home: StorageHome, tmp_path: Path) -> None:
    before, databases = home.content(), ("hatrack.db", "trainer/jobs.db", f"grounding/{STORE}.db")
    made = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    assert (made.path.stat().st_mode & 0o777, made.bytes) == (0o600, made.path.stat().st_size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home"], "nothing else is left"
    check_members(made.path, made.manifest, QUIET)
    assert made.manifest == read_manifest(made.path)
    assert (made.manifest.faults, made.manifest.reindexed, made.manifest.outside) == ((), 0, ())

    other = restored(home, made.path, tmp_path / "elsewhere")
    kept = {name: content for name, content in before.items() if not name.startswith("engine/")}
    assert other.content() == kept
    for name in databases:
        assert rows(other.path / name) == rows(home.path / name)
    assert (other.path / "admin.key").read_text().strip() == ADMIN_KEY
    modes = {path.stat().st_mode & 0o777 for path in other.path.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in other.path.rglob("*") if path.is_dir()} == {0o700}
    for path in other.path.rglob("*"):
        assert path.is_dir() or str(home.path).encode() not in path.read_bytes(), f"{path} names its old place"


def test_a_passage_file_can_be_read_and_written_at_once_after_the_restore(home: StorageHome, tmp_path: Path) -> None:
    other = restored(home, back_up(home, tmp_path / "b.tar"), tmp_path / "elsewhere")
    with closing(sqlite3.connect(other.path / "grounding" / f"{STORE}.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_a_killed_process_has_left_in_a_log_is_in_the_backup(home: StorageHome, tmp_path: Path) -> None:
    def write_and_die() -> None:
        db = sqlite3.connect(home.path / "hatrack.db", isolation_level=None)
        db.execute("UPDATE stores SET name = 'written last'")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die, BackupError) == -signal.SIGKILL
    assert (home.path / "hatrack.db-wal").stat().st_size > 0
    other = restored(home, back_up(home, tmp_path / "b.tar"), tmp_path / "elsewhere")
    assert any("'written last'" in line for line in rows(other.path / "hatrack.db"))


def test_a_file_that_is_deleted_while_it_is_copied_makes_another_round(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        home.gateway(home.put_file("file-newer", b"newer"), home.remove_file(FILE))
        (home.path / "files" / FILE).unlink()

    rounds = meanwhile(monkeypatch, change)
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    assert [sorted(each.files) for each in rounds] == [[FILE], ["file-newer"]]
    assert backup.manifest.faults == ()
    other = restored(home, backup.path, tmp_path / "elsewhere")
    assert set(other.stored_files()) == {"file-newer"}
    assert (other.path / "files" / "file-newer").read_bytes() == b"newer"


def test_a_document_that_is_replaced_while_it_is_copied_is_indexed_again(home: StorageHome, tmp_path: Path) -> None:
    home.gateway(lambda db: db.exec_driver_sql("UPDATE store_files SET generation = 'not copied'"))
    backup = make_backup(home.settings, tmp_path / "b.tar", QUIET)
    assert backup.manifest.reindexed == 1
    other = restored(home, backup.path, tmp_path / "elsewhere")
    query = "SELECT status, generation, wanted IS NOT NULL FROM store_files"
    assert other.gateway(lambda db: db.exec_driver_sql(query).one())[0] == ("in_progress", None, 1)
    assert home.gateway(lambda db: db.exec_driver_sql(query).one())[0] == ("completed", "not copied", 0)


def test_what_is_missing_or_damaged_in_the_home_is_said_and_the_rest_is_kept(
    home: StorageHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup_module, "ROUND_PAUSE_S", 0)
    home.gateway(home.put_file("file-lost", b"lost"))
    (home.path / "files" / "file-lost").unlink()
    weights = home.path / "adapters" / home.digest / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"x" * weights.stat().st_size)
    faults = make_backup(home.settings, tmp_path / "b.tar", QUIET).manifest.faults
    assert len(faults) == 2
    assert "files/file-lost is missing in the home" in faults
    assert any(fault.startswith(f"adapters/{home.digest} is damaged in the home") for fault in faults)


def test_missing_secrets_are_said(home: StorageHome, tmp_path: Path) -> None:
    for name in ("admin.key", "key.secret"):
        (home.path / name).unlink()
    faults = make_backup(home.settings, tmp_path / "b.tar", QUIET).manifest.faults
    assert faults == ("admin.key is missing in the home", "key.secret is missing in the home")
    home.settings = home.settings.model_copy(update={"admin_key": SecretStr("hk_given")})
    faults = make_backup(home.settings, tmp_path / "c.tar", QUIET).manifest.faults
    assert faults == ("key.secret is missing in the home",)


def test_half_a_home_is_refused(home: StorageHome, tmp_path: Path) -> None:
    (home.path / MARKER).touch()
    with pytest.raises(BackupError, match=r"a restore that was cut off.*Nothing was backed up"):
        back_up(home, tmp_path / "b.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_damaged_database_is_refused(home: StorageHome, tmp_path: Path) -> None:
    path = home.path / "hatrack.db"
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 6] = b"\xff" * 4096 * 4
    path.write_bytes(content)
    with pytest.raises(BackupError, match=r"hatrack\.db"):
        back_up(home, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_backup_never_replaces_a_file(home: StorageHome, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("of yesterday")
    with pytest.raises(BackupError, match="exists already"):
        back_up(home, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_text() == "of yesterday"
    with pytest.raises(BackupError, match=r"nothing to back up: .*HATRACK_HOME"):
        back_up(home.at(tmp_path / "nowhere"), tmp_path / "c.tar")
    with pytest.raises(BackupError, match="does not exist"):
        back_up(home, tmp_path / "nowhere" / "c.tar")


def test_kill_9_leaves_no_file_that_looks_whole_and_the_next_backup_cleans_up(
    home: StorageHome, tmp_path: Path
) -> None:
    target = tmp_path / "b.tar"
    calls: list[str] = []
    make_backup(home.settings, tmp_path / "whole.tar", lambda _done, _total, doing: calls.append(doing))
    assert {"copying", "verifying"} <= set(calls)
    for moment in range(1, len(calls), max(1, len(calls) // 6)):

        def die_at(_done: int, _total: int | None, _doing: str, left: list[int] = [moment]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(lambda die=die_at: make_backup(home.settings, target, die), BackupError) == -signal.SIGKILL
        assert not target.exists()
        assert (tmp_path / ".b.tar.partial").is_dir()
    of_last_night = tmp_path / ".hatrack-20261127T020000Z.tar.partial"
    of_last_night.mkdir()
    (of_last_night / "archive.tar").write_text("half")
    back_up(home, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home", "whole.tar"]


def test_two_backups_to_one_name_do_not_disturb_each_other(home: StorageHome, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile_another(_done: int, _total: int | None, _doing: str) -> None:
        if not refused:
            with pytest.raises(BackupError) as caught:
                back_up(home, tmp_path / "b.tar")
            refused.append(str(caught.value))

    make_backup(home.settings, tmp_path / "b.tar", meanwhile_another)
    assert refused == [f"another `hatrack backup` is writing {tmp_path / 'b.tar'}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "home"]


def test_a_full_disk_is_said_and_leaves_nothing(home: StorageHome, tmp_path: Path) -> None:
    """A real refusal by the kernel: the limit of a file's size, in a process of its own."""

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (350_000, 350_000))
        back_up(home, tmp_path / "b.tar")

    assert in_child(on_a_full_disk, NoRoom) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_what_is_kept_elsewhere_is_named_and_the_rest_is_backed_up(home: StorageHome, tmp_path: Path) -> None:
    settings = Settings(**{**dict(home.settings), "database_url": "postgresql://db/hatrack"})
    manifest = make_backup(settings, tmp_path / "b.tar", QUIET).manifest
    names = {member.path for member in manifest.members}
    assert manifest.outside == ("database_url",)
    assert "hatrack.db" not in names
    assert {f"files/{FILE}", "key.secret", "trainer/jobs.db", f"grounding/{STORE}.db"} <= names
    notes = restore(home.at(tmp_path / "elsewhere").settings, tmp_path / "b.tar", QUIET).notes
    assert any("HATRACK_DATABASE_URL" in note and "pg_dump" in note for note in notes)

    url = "postgresql://db/hatrack"
    settings = Settings(**{**dict(home.settings), "database_url": url, "trainer_database_url": url})
    manifest = make_backup(settings, tmp_path / "d.tar", QUIET).manifest
    names = {member.path for member in manifest.members}
    assert manifest.outside == ("database_url", "trainer_database_url")
    assert not names & {"hatrack.db", "trainer/jobs.db"}
    assert any(name.startswith(f"trainer/jobs/{RUN}/") for name in names), "the runs' folders are here"
