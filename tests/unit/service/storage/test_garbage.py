"""What nothing names any more is found with its size and removed; what is named, young or in use stays."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.config import Settings
from service.server.instance import InstanceLock
from service.storage.errors import BackupError
from service.storage.garbage import (
    GRACE_S,
    WHEN_ENGINE_STARTS,
    WHEN_TRAINER_STARTS,
    WITHOUT_ENGINE_URL,
    WITHOUT_ENGINES,
    Garbage,
    find_garbage,
    remove_garbage,
)
from tests.unit.service.storage.storage_home import RUN, StorageHome, end_run

UNNAMED = "0" * 64


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two days have passed since everything was written: the kernel sets the time of a change, nobody else can."""
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr("service.storage.garbage.time.time", lambda: now() + 2 * GRACE_S)
        yield


@pytest.fixture
def littered(home: StorageHome) -> StorageHome:
    """Crashes and deletions have left something of every kind. The gateway's engine is its own."""
    home.settings = home.settings.model_copy(update={"engine_url": ""})
    root = home.path
    for name in (
        f"adapters/{UNNAMED}/adapter_model.safetensors",
        "adapters/.staging/abc/adapter_model.safetensors",
        "files/.incoming/abc",
        "files/file-unlisted",
        "grounding/vs_deleted.db",
        "grounding/vs_deleted.db-wal",
        "batches/batch_ended/output.jsonl",
        "trainer/jobs/ftjob-unrecorded/spec.json",
        "trainer/evaluations/.new-eval-1/spec.json",
        f"trainer/jobs/{RUN}/.output.partial/adapter_model.safetensors",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    (root / "trainer/jobs/ftjob-with-a-key").mkdir()
    (root / "trainer/jobs/ftjob-with-a-key" / "key").write_text("hk_lost\n")
    return home


def found(home: StorageHome, **more: float) -> dict[str, tuple[str, int, str | None]]:
    return {
        each.paths[0].relative_to(home.path).as_posix(): (each.kind, each.bytes, each.later)
        for each in find_garbage(home.settings, **more)
    }


@contextmanager
def gateway_running(home: StorageHome) -> Iterator[None]:
    lock = InstanceLock(home.path)
    try:
        yield
    finally:
        lock.release()


@pytest.mark.usefixtures("aged")
def test_what_is_named_is_no_garbage(home: StorageHome) -> None:
    assert {kind for kind, _, _ in found(home).values()} == {"batch"}, "batch_1 has answers on the disk and no row"


@pytest.mark.usefixtures("aged")
def test_all_kinds_are_found_and_removed_and_nothing_else(littered: StorageHome) -> None:
    end_run(littered)
    assert found(littered) == {
        f"adapters/{UNNAMED}": ("adapter", 100, None),
        "adapters/.staging/abc": ("upload", 100, None),
        "files/.incoming/abc": ("upload", 100, None),
        "files/file-unlisted": ("file", 100, None),
        "grounding/vs_deleted.db": ("vector store", 200, None),
        "batches/batch_1": ("batch", 24, None),
        "batches/batch_ended": ("batch", 100, None),
        "trainer/jobs/ftjob-unrecorded": ("run", 100, None),
        "trainer/jobs/ftjob-with-a-key": ("run", 8, WHEN_TRAINER_STARTS),
        "trainer/evaluations/.new-eval-1": ("leftover", 100, None),
        f"trainer/jobs/{RUN}/.output.partial": ("leftover", 100, None),
    }
    removed: list[str] = []
    freed = remove_garbage(littered.settings, removed=lambda each: removed.append(each.kind))
    assert (len(removed), freed) == (10, 100 * 9 + 24 + 100)
    assert set(found(littered)) == {"trainer/jobs/ftjob-with-a-key"}
    assert (littered.path / "adapters" / littered.digest / "adapter_model.safetensors").is_file()
    assert (littered.path / "trainer" / "jobs" / RUN / "spec.json").is_file()


def test_what_is_young_stays(littered: StorageHome) -> None:
    """An upload's bytes are on the disk before its row is written."""
    assert found(littered) == {}
    assert remove_garbage(littered.settings, removed=lambda _: pytest.fail("too young")) == 0
    old = time.time() - 10 * GRACE_S
    os.utime(littered.path / "files" / "file-unlisted", (old, old))
    assert found(littered) == {}, "a hard link keeps the time of its source: the time of the link counts"


@pytest.mark.usefixtures("aged")
def test_adapters_wait_for_the_engine_while_a_gateway_runs(littered: StorageHome) -> None:
    with gateway_running(littered):
        assert found(littered)[f"adapters/{UNNAMED}"] == ("adapter", 100, WHEN_ENGINE_STARTS)
        remove_garbage(littered.settings, removed=lambda _: None)
        assert (littered.path / "adapters" / UNNAMED).is_dir()
        assert not (littered.path / "files" / "file-unlisted").exists()
    remove_garbage(littered.settings, removed=lambda _: None)
    assert not (littered.path / "adapters" / UNNAMED).exists()


@pytest.mark.usefixtures("aged")
def test_adapters_wait_for_an_engine_that_was_started_alone(littered: StorageHome) -> None:
    """`hatrack engine` becomes vLLM by an execve, and has no record in the home."""
    start = "import os, sys; from adapters.store import hold_for_engine; from pathlib import Path; "
    start += "hold_for_engine(Path(sys.argv[1])); os.execv('/bin/sh', ['sh', '-c', 'echo loaded; exec sleep 600'])"
    store, adapter = littered.path / "adapters", littered.path / "adapters" / UNNAMED
    with subprocess.Popen([sys.executable, "-c", start, str(store)], stdout=subprocess.PIPE) as engine:
        try:
            assert engine.stdout is not None
            assert engine.stdout.readline() == b"loaded\n"
            assert found(littered)[f"adapters/{UNNAMED}"] == ("adapter", 100, WHEN_ENGINE_STARTS)
            remove_garbage(littered.settings, removed=lambda _: None)
            assert adapter.is_dir()
            assert not (littered.path / "files" / "file-unlisted").exists()
        finally:
            engine.kill()
    remove_garbage(littered.settings, removed=lambda _: None)
    assert not adapter.exists()


@pytest.mark.usefixtures("aged")
def test_adapters_stay_where_an_engine_may_run_anywhere(littered: StorageHome) -> None:
    littered.settings = littered.settings.model_copy(update={"engine_url": "http://engine:8001"})
    assert found(littered)[f"adapters/{UNNAMED}"] == ("adapter", 100, WITHOUT_ENGINE_URL)
    remove_garbage(littered.settings, removed=lambda _: None)
    assert (littered.path / "adapters" / UNNAMED).is_dir()


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    ("address", "later"),
    [('agent = "http://10.0.0.5:8002"', WITHOUT_ENGINES), ('url = "unix:/e.sock"', WITHOUT_ENGINES), ("", None)],
)
def test_adapters_stay_where_one_of_several_engines_runs_elsewhere(
    littered: StorageHome, address: str, later: str | None
) -> None:
    base_dir = littered.settings.base_model
    file = littered.path / "engines.toml"
    own = f'[[engine]]\nname = "own"\nbase = "{base_dir}"\n'
    file.write_text(f'{own}[[engine]]\nname = "other"\nbase = "{base_dir}"\n{address}\n')
    more = {"engines": file, "base_model": "", "agent_key": SecretStr("k" * 20)}
    littered.settings = littered.settings.model_copy(update=more)
    assert found(littered)[f"adapters/{UNNAMED}"] == ("adapter", 100, later)
    file.write_text("[[engine]]")
    with pytest.raises(BackupError, match="HATRACK_ENGINES"):
        find_garbage(littered.settings)


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize("is_new", [False, True], ids=["missing", "new"])
def test_folders_of_runs_are_no_garbage_where_their_database_was_lost(littered: StorageHome, is_new: bool) -> None:
    database = littered.path / "trainer" / "jobs.db"
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    if is_new:
        littered.trainer()
    assert not any(name.startswith("trainer/") for name in found(littered))
    remove_garbage(littered.settings, removed=lambda _: None)
    assert (littered.path / "trainer" / "jobs" / RUN / "spec.json").is_file()


@pytest.mark.usefixtures("aged")
def test_what_nobody_has_agreed_to_stays(littered: StorageHome) -> None:
    shown = [each for each in find_garbage(littered.settings) if each.kind == "file"]
    later = littered.path / "files" / "file-unlisted-since"
    later.write_bytes(b"x")
    remove_garbage(littered.settings, removed=lambda _: None, shown=shown)
    assert not (littered.path / "files" / "file-unlisted").exists()
    assert later.exists()
    assert (littered.path / "grounding" / "vs_deleted.db").exists()


@pytest.mark.usefixtures("aged")
def test_an_upload_whose_process_lives_stays_however_old_it_is(littered: StorageHome) -> None:
    staged = littered.path / "adapters" / ".staging" / "abc"
    lock = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert "adapters/.staging/abc" not in found(littered)
    finally:
        os.close(lock)
    assert "adapters/.staging/abc" in found(littered)


@pytest.mark.usefixtures("aged")
def test_a_run_that_goes_on_keeps_its_half_written_files(littered: StorageHome) -> None:
    assert f"trainer/jobs/{RUN}/.output.partial" not in found(littered)


def test_without_the_database_nothing_is_called_garbage(littered: StorageHome, tmp_path: Path) -> None:
    elsewhere = Settings(**{**dict(littered.settings), "database_url": "postgresql://127.0.0.1:1/hatrack"})
    with pytest.raises(BackupError, match=r"127\.0\.0\.1:1/hatrack cannot be used: .* Nothing was removed"):
        find_garbage(elsewhere)
    with pytest.raises(BackupError, match="there is no home"):
        find_garbage(littered.at(tmp_path / "nowhere").settings)


@pytest.mark.usefixtures("aged")
def test_what_cannot_be_removed_is_said_and_not_counted(littered: StorageHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may remove everything: the system calls refuse."""
    stuck = {"output.jsonl", "file-unlisted"}

    def refuse(call: Callable[..., None]) -> Callable[..., None]:
        def instead(path: str | Path, *args: Any, **more: Any) -> None:
            if Path(path).name in stuck:
                raise PermissionError(errno.EPERM, "Operation not permitted", path)
            call(path, *args, **more)

        return instead

    end_run(littered)
    (littered.path / "batches" / "batch_ended" / "error.jsonl").write_bytes(b"x" * 7)
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", refuse(os.unlink))
        removed: list[Garbage] = []
        failed: dict[str, str] = {}
        freed = remove_garbage(
            littered.settings,
            removed=removed.append,
            failed=lambda each, reason: failed.update({each.paths[0].name: reason}),
        )
    assert set(failed) == {"batch_1", "batch_ended", "file-unlisted"}
    assert all(reason.endswith(": Operation not permitted") for reason in failed.values())
    assert str(littered.path / "batches" / "batch_ended" / "output.jsonl") in failed["batch_ended"]
    assert {each.paths[0].name for each in removed}.isdisjoint(failed)
    assert freed == sum(each.bytes for each in removed) + 7, "of the folder that is still there one file is gone"
    assert (littered.path / "batches" / "batch_ended" / "output.jsonl").exists()
