"""A disk that is really full: the job ends, says so, and leaves nothing half written, whatever cannot be written."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import FileRef
from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.finetune.trainers import Running, running, stand_in
from trainer.finetune import worker
from trainer.finetune.kind import FinetuneKind
from trainer.finetune.spec import JobResult
from trainer.runs import control, supervisor
from trainer.runs import directory as folders
from trainer.runs.directories import RunDirectories
from trainer.runs.failures import explain
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import FULL


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def exits(code: int) -> Any:
    return lambda _folder, _stage: [sys.executable, "-c", f"raise SystemExit({code})"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


def test_a_worker_that_can_write_nothing_ends_with_a_word_of_its_own(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job()
    monkeypatch.setattr(worker, "lower_priority", lambda: None)
    monkeypatch.setattr(folders.RunDirectory, "emit_event", full)
    monkeypatch.setattr(folders.RunDirectory, "write", full)
    assert worker.main([str(folder), "--stage", "validate"]) == FULL
    monkeypatch.setattr(folders.os, "pwrite", full)
    assert worker.main([str(folder), "--stage", "validate"]) == FULL


@pytest.fixture
def way(gateway: FakeGateway) -> Iterator[Gateway]:
    found = Gateway(gateway.url, KEY)
    yield found
    found.close()


@pytest.mark.parametrize("name", ["training.jsonl", "result.json"])
def test_nothing_is_left_of_what_could_not_be_written_whole(
    make_job: Any, gateway: FakeGateway, way: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = make_job()
    before = sorted(path.name for path in folder.iterdir())
    content = gateway.files["train"]
    digest = hashlib.sha256(content).hexdigest()
    reference = FileRef(id="train", filename=name, bytes=len(content), sha256=digest)
    writes = {
        "training.jsonl": lambda: way.fetch(reference, folder / name),
        "result.json": lambda: folders.RunDirectory(folder).write(name, JobResult(status="cancelled")),
    }
    monkeypatch.setattr("trainer.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        writes[name]()
    assert sorted(path.name for path in folder.iterdir()) == before


async def ended(trainer: Running) -> Any:
    client = trainer.client()
    return await client.ended((await client.create()).id)


async def test_a_job_ends_though_nothing_can_be_written_into_its_folder(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectories, "write", full)
    async with running(tmp_path, base_dir, gateway, command=exits(FULL)) as trainer:
        job = await ended(trainer)
        assert (job.status, job.error.code) == ("failed", "disk_full")
        assert "Free some space" in job.error.message
        assert (await trainer.client().messages(job.id))[-1] == job.error.message


async def test_a_job_whose_worker_has_no_room_to_start_ends(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectories, "set_control", full)
    async with running(tmp_path, base_dir, gateway, command=stand_in) as trainer:
        job = await ended(trainer)
        assert (job.status, job.error.code) == ("failed", "disk_full")


async def test_a_version_that_is_there_stays_though_the_disk_is_full(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = JobResult(status="succeeded", fine_tuned_model="voice@1")
    monkeypatch.setattr(FinetuneKind, "pushed", lambda *_: pushed)
    monkeypatch.setattr(RunDirectories, "write", full)
    async with running(tmp_path, base_dir, gateway, command=exits(FULL)) as trainer:
        job = await ended(trainer)
        assert (job.status, job.fine_tuned_model) == ("succeeded", "voice@1")
        assert "no verdict could be stored" in (await trainer.client().messages(job.id))[-1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (RuntimeError("shapes differ"), "internal_error"),
    ],
)
def test_what_the_machine_lacks_is_told_by_a_code(error: Exception, code: str) -> None:
    assert explain(error).code == code
