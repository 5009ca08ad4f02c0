"""A restore is all or nothing: what is damaged, newer or has no room is refused, and one that was cut off says so."""

from __future__ import annotations

import io
import os
import resource
import signal
import tarfile
from pathlib import Path

import pytest
import typer

from service.cli.run import _run, unusable_data
from service.errors import SettingsError
from service.server.instance import LOCK, InstanceLock, holder
from service.storage import archive
from service.storage import restore as restore_module
from service.storage.archive import Header, Manifest, check_members, read_manifest
from service.storage.backup import make_backup
from service.storage.errors import BackupDamaged, BackupError, BackupNewer, NoRoom, TargetNotEmpty
from service.storage.restore import MARKER, restore, unfinished_restore
from tests.unit.service.storage.storage_home import FILE, StorageHome, in_child
from tests.unit.service.storage.test_backup import QUIET


@pytest.fixture
def backup(home: StorageHome, tmp_path: Path) -> Path:
    return make_backup(home.settings, tmp_path / "b.tar", QUIET).path


@pytest.fixture
def target(home: StorageHome, tmp_path: Path) -> StorageHome:
    """Where to restore: nothing is there yet."""
    return home.at(tmp_path / "target")


def names(directory: Path) -> list[str]:
    """What is there, but for the lock that a gateway would hold, which says nothing once it is released."""
    return sorted(path.name for path in directory.iterdir() if path.name != LOCK) if directory.exists() else []


def offset_of(backup: Path, member: str) -> tuple[int, int]:
    with tarfile.open(backup) as tar:
        info = tar.getmember(member)
        return info.offset_data, info.size


def test_a_base_that_is_prepared_may_stay_and_nothing_else(backup: Path, target: StorageHome) -> None:
    (target.path / "base").mkdir(parents=True)
    (target.path / "files").mkdir()
    restore(target.settings, backup, QUIET)
    assert (target.path / "files" / FILE).is_file()
    assert "base" in names(target.path)
    before = target.content()
    with pytest.raises(TargetNotEmpty, match=r"holds state already \(hatrack\.db, admin\.key"):
        restore(target.settings, backup, QUIET)
    assert target.content() == before


@pytest.mark.parametrize("member", [f"files/{FILE}", "hatrack.db", "manifest.json", "backup.json"])
def test_a_byte_that_has_changed_is_found(backup: Path, target: StorageHome, member: str) -> None:
    offset, size = offset_of(backup, member)
    content = bytearray(backup.read_bytes())
    content[offset + size // 2] ^= 1
    backup.write_bytes(content)
    with pytest.raises(BackupDamaged, match=r"b\.tar is damaged"):
        check_members(backup, read_manifest(backup), QUIET)
    with pytest.raises(BackupDamaged):
        restore(target.settings, backup, QUIET)
    assert names(target.path) == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_found(backup: Path, target: StorageHome, share: float) -> None:
    end = sum(offset_of(backup, "manifest.sha256"))
    with backup.open("r+b") as file:
        file.truncate(int(end * share))
    with pytest.raises(BackupDamaged):
        restore(target.settings, backup, QUIET)
    assert names(target.path) == []


def test_what_is_no_backup_is_refused(tmp_path: Path, target: StorageHome) -> None:
    (tmp_path / "text.tar").write_text("hello")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    for name in ("text.tar", "other.tar"):
        with pytest.raises(BackupDamaged, match=r"no .*backup"):
            restore(target.settings, tmp_path / name, QUIET)
    with pytest.raises(BackupError, match="cannot read"):
        restore(target.settings, tmp_path / "missing.tar", QUIET)


def written(path: Path, member: str, content: bytes, *, header: Header, **facts: object) -> Path:
    """A whole backup with one member, as another release might have written it."""
    source = path.with_suffix(".member")
    source.write_bytes(content)
    writer = archive.ArchiveWriter(path, header, lambda _: None)
    writer.add(member, source)
    writer.finish(schemas={}, base={}, **facts)
    return path


@pytest.mark.parametrize(
    "member",
    [
        *("../escaped", "/etc/passwd", "files/../../escaped", "files//a", "files/a\nb", "manifest.json"),
        *("a", MARKER, "gateway.lock", "base/config.json", "engine/engine.json", ".restore/hatrack.db"),
        *("files", "hatrack.db/a", "key.secret/a"),
    ],
)
def test_no_member_leaves_the_places_of_a_backup(tmp_path: Path, target: StorageHome, member: str) -> None:
    backup = written(tmp_path / "evil.tar", member, b"x", header=Header(format=1, hatrack="0.1.0", created_at=1))
    with pytest.raises(BackupDamaged):
        restore(target.settings, backup, QUIET)
    assert names(target.path) == []
    assert not (tmp_path / "escaped").exists()


def test_no_gateway_starts_while_a_home_is_restored(backup: Path, target: StorageHome) -> None:
    refused: list[str] = []

    def meanwhile(_done: int, _total: int | None, _doing: str) -> None:
        if not refused:
            with pytest.raises(SettingsError) as of_a_gateway:
                InstanceLock(target.path)
            with pytest.raises(BackupError) as of_a_restore:
                restore(target.settings, backup, QUIET)
            assert holder(target.path) is None, "`hatrack down` would stop the restore"
            refused.extend([str(of_a_gateway.value), str(of_a_restore.value)])

    restore(target.settings, backup, meanwhile)
    assert all("`hatrack restore` (process" in message for message in refused)
    assert len(refused) == 2
    InstanceLock(target.path).release()


def test_nothing_is_restored_under_a_gateway(backup: Path, target: StorageHome) -> None:
    lock = InstanceLock(target.path)
    try:
        with pytest.raises(BackupError, match=r"another gateway \(process \d+\) is already running.*hatrack down"):
            restore(target.settings, backup, QUIET)
    finally:
        lock.release()
    assert names(target.path) == []


def test_a_gateway_looks_again_once_it_has_the_lock(
    target: StorageHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its first look and its start a restore may have begun, and been cut off."""
    monkeypatch.setattr("service.app.create_app", lambda _: pytest.fail("it must not start"))
    target.path.mkdir()
    (target.path / MARKER).touch()
    with pytest.raises(typer.Exit):
        _run(target.settings, None)
    assert "Run `hatrack restore FILE` again" in " ".join(capsys.readouterr().err.split())


def test_a_newer_backup_is_refused_with_the_release_that_reads_it(
    tmp_path: Path, backup: Path, target: StorageHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = written(tmp_path / "newer.tar", "a", b"x", header=Header(format=2, hatrack="9.1.0", created_at=1))
    with pytest.raises(BackupNewer, match=r"written by Hatrack 9\.1\.0, in format 2.*Use Hatrack 9\.1\.0 or newer"):
        restore(target.settings, newer, QUIET)

    def of_a_newer_release(path: Path) -> Manifest:
        return read_manifest(path).model_copy(update={"schemas": {"hatrack.db": "9999"}, "hatrack": "9.1.0"})

    monkeypatch.setattr(restore_module, "read_manifest", of_a_newer_release)
    with pytest.raises(BackupNewer, match=r"written by Hatrack 9\.1\.0: hatrack\.db in it has the schema 9999"):
        restore(target.settings, backup, QUIET)
    assert names(target.path) == []


def test_another_base_is_pointed_out(backup: Path, target: StorageHome, tmp_path: Path) -> None:
    other = target.settings.model_copy(update={"base_model": "ORG/other@main"})
    (note,) = restore(other, backup, QUIET).notes
    assert "ORG/other@main" in note
    assert "HATRACK_BASE_MODEL" in note


def test_kill_9_leaves_a_home_that_says_what_to_do_and_the_next_restore_succeeds(
    backup: Path, target: StorageHome, home: StorageHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    restore(home.at(home.path.with_name("counted")).settings, backup, lambda done, *_: calls.append(done))
    (target.path / "base").mkdir(parents=True)
    for moment in range(1, len(calls), max(1, len(calls) // 4)):

        def die_at(_done: int, _total: int | None, _doing: str, left: list[int] = [moment]) -> None:  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(lambda die=die_at: restore(target.settings, backup, die), BackupError) == -signal.SIGKILL
        assert names(target.path) == [".restore", MARKER, "base"]
        (problem,) = unusable_data(target.settings)
        assert problem == unfinished_restore(target.path)
        assert f"Run `hatrack restore {backup}` again" in problem
    assert "hatrack restore" in (target.path / MARKER).read_text()

    def die_between_two_moves() -> None:
        rename = Path.rename

        def dying(path: Path, to: Path) -> Path:
            if path.name == "files":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, to)

        Path.rename = dying  # type: ignore[method-assign, assignment]  # in a process of its own
        restore(target.settings, backup, QUIET)

    assert in_child(die_between_two_moves, BackupError) == -signal.SIGKILL
    assert "adapters" in names(target.path)
    assert len(unusable_data(target.settings)) == 1
    restore(target.settings, backup, QUIET)
    assert unusable_data(target.settings) == []
    assert MARKER not in names(target.path)
    assert "base" in names(target.path)


def test_a_disk_that_fills_up_leaves_nothing(backup: Path, target: StorageHome) -> None:
    """A real refusal by the kernel: the limit of a file's size, in a process of its own."""

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        restore(target.settings, backup, QUIET)

    assert in_child(on_a_full_disk, NoRoom) == 3
    assert names(target.path) == []


def test_a_disk_that_is_too_small_is_said_first(
    backup: Path, target: StorageHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_module, "SPARE", 1e12)
    with pytest.raises(NoRoom, match=r"needs \d+ bytes under .* and \d+ are free"):
        restore(target.settings, backup, QUIET)
    assert names(target.path) == []
