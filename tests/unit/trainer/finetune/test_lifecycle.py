"""What becomes of jobs, whatever becomes of their workers and of the trainer. The workers are real processes that train
nothing; ``tests/crash/test_jobs.py`` does the same with those that do."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.finetune.trainers import PATIENCE_S, Client, Running, running, stand_in
from tests.unit.trainer.worker_processes import end_workers
from trainer.errors import SettingsError
from trainer.finetune.spec import TRAIN
from trainer.runs import process, supervisor, transitions

__all__ = ["end_workers"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transitions, "BACK_OFF_S", (0.0, 0.05, 0.05))
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


def worker_of(trainer: Running, job_id: str) -> int:
    pid = trainer.trainer.jobs.directories.worker(job_id)
    assert pid, "the worker has gone"
    return pid


async def test_a_cancelled_job_ends_and_its_key_with_it(client: Client, gateway: FakeGateway, trainer: Running) -> None:
    made = await client.create(metadata={"hold": "3"})
    await client.at_step(made.id, 3)
    cancelled = await client.openai.fine_tuning.jobs.cancel(made.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert cancelled.finished_at is not None
    assert cancelled.hatrack["seconds"] > 0
    assert (await client.openai.fine_tuning.jobs.cancel(made.id)).status == "cancelled"
    for change in (client.openai.fine_tuning.jobs.pause, client.openai.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError) as refused:
            await change(made.id)
        assert refused.value.code == "invalid_state"
    await until(lambda: KEY not in gateway.keys)
    await until(lambda: not any(trainer.trainer.jobs.directories.keys_to_revoke.iterdir()))


async def test_a_job_that_waits_is_cancelled_without_a_worker(client: Client) -> None:
    first = await client.create(metadata={"hold": "1"})
    waiting = await client.create()
    await client.until(waiting.id, lambda job: job.status == "queued")
    assert (await client.openai.fine_tuning.jobs.cancel(waiting.id)).status == "cancelled"
    assert (await client.messages(waiting.id))[-1] == "cancelled"
    assert (await client.openai.fine_tuning.jobs.retrieve(first.id)).status == "running"


async def test_a_paused_job_gives_the_device_away_and_goes_on_where_it_was(client: Client) -> None:
    made = await client.create(metadata={"hold": "3"})
    await client.at_step(made.id, 3)
    jobs = client.openai.fine_tuning.jobs
    assert (await jobs.pause(made.id)).status == "paused"
    assert (await jobs.pause(made.id)).status == "paused"
    other = await client.create()
    assert (await client.ended(other.id)).status == "succeeded"
    assert (await jobs.retrieve(made.id)).status == "paused"
    assert (await jobs.resume(made.id)).status in ("queued", "running", "succeeded")
    assert (await client.ended(made.id)).status == "succeeded"
    steps = [event.data["step"] for event in await client.events(made.id) if event.type == "metrics"]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.slow
async def test_a_job_that_waits_can_be_paused_and_resumed(client: Client) -> None:
    first = await client.create(metadata={"hold": "1"})
    waiting = await client.create()
    await client.until(waiting.id, lambda job: job.status == "queued")
    jobs = client.openai.fine_tuning.jobs
    assert (await jobs.pause(waiting.id)).status == "paused"
    await jobs.cancel(first.id)
    await asyncio.sleep(0.5)
    assert (await jobs.retrieve(waiting.id)).status == "paused"
    await jobs.resume(waiting.id)
    assert (await client.ended(waiting.id)).status == "succeeded"


async def test_a_killed_worker_is_started_again_from_its_last_checkpoint(client: Client) -> None:
    made = await client.create(metadata={"die": "3", "lives": "1"})
    assert (await client.ended(made.id)).status == "succeeded"
    warned = [event for event in await client.events(made.id) if event.level == "warn"]
    assert [event.message for event in warned] == [
        "The worker was killed (SIGKILL); resuming from checkpoint step-00000002"
    ]
    steps = [event.data["step"] for event in await client.events(made.id) if event.type == "metrics"]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.slow
async def test_a_worker_that_is_killed_while_it_judges_again_and_again_leaves_a_version_that_is_not_judged(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.runs.transitions.BACK_OFF_S", (0.0, 0.0, 0.0))
    made = await client.create(metadata={"judging": "die"})
    job = await client.ended(made.id)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", "voice@1", None)
    assert "hatrack_verdict" not in job.metadata
    last = (await client.events(made.id))[-1]
    assert last.level == "error"
    assert "voice@1 is registered, without a verdict" in last.message
    warned = [event.message for event in await client.events(made.id) if event.level == "warn"]
    assert warned == ["The worker was killed (SIGKILL); resuming from the answers collected so far"] * 3


@pytest.mark.parametrize("paused", [False, True])
async def test_a_job_that_is_cancelled_once_its_version_is_there_has_succeeded(client: Client, paused: bool) -> None:
    made = await client.create(metadata={"judging": "hold"})
    await client.at_step(made.id, 5)
    jobs = client.openai.fine_tuning.jobs
    if paused:
        assert (await jobs.pause(made.id)).status == "paused"
    assert (await jobs.cancel(made.id)).status == "succeeded"
    job = await client.ended(made.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "voice@1")
    assert "hatrack_verdict" not in job.metadata


@pytest.mark.slow
async def test_a_job_that_gets_further_each_time_is_never_given_up(client: Client) -> None:
    made = await client.create(metadata={"die": "each", "steps": "6"})
    assert (await client.ended(made.id)).status == "succeeded"
    assert [event.data["restarts"] for event in await client.events(made.id) if event.level == "warn"] == [1] * 5


@pytest.mark.slow
async def test_a_job_whose_worker_dies_again_and_again_fails_and_says_what_to_do(client: Client) -> None:
    made = await client.create(metadata={"die": "2"})
    job = await client.ended(made.id)
    assert (job.status, job.error.code) == ("failed", "worker_killed")
    assert "4 times in a row" in job.error.message
    events = await client.events(made.id)
    assert [event.data["restarts"] for event in events if event.level == "warn"] == [1, 2, 3]
    assert (events[-1].level, events[-1].message) == ("error", job.error.message)


@pytest.mark.slow
async def test_a_worker_that_the_kernel_kills_for_memory_says_so(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter(range(1000))
    monkeypatch.setattr(supervisor, "memory_kills", lambda: next(counts))
    made = await client.create(metadata={"die": "2"})
    job = await client.ended(made.id)
    assert job.error.code == "out_of_memory"
    assert "smaller max_length" in job.error.message


def test_the_kernels_count_is_read_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 9\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 4\n")
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    monkeypatch.setattr(process, "VMSTAT", tmp_path / "vmstat")
    assert process.memory_kills() == 7
    monkeypatch.setattr(process, "CGROUP", tmp_path / "none")
    assert process.memory_kills() == 4


@pytest.mark.slow
async def test_projects_take_turns(trainer: Running) -> None:
    sea, land = trainer.client("sea"), trainer.client("land")
    first = await sea.create(metadata={"hold": "1", "steps": "1"})
    await sea.at_step(first.id, 1)
    many = [await sea.create(metadata={"steps": "1"}) for _ in range(3)]
    one = [await land.create(metadata={"steps": "1"}) for _ in range(2)]
    for client, jobs in ((sea, many), (land, one)):
        for made in jobs:
            await client.until(made.id, lambda job: job.status == "queued")
    await sea.openai.fine_tuning.jobs.cancel(first.id)
    for client, jobs in ((sea, many), (land, one)):
        for made in jobs:
            await client.ended(made.id)
    order = await trainer.trainer.database.run(
        lambda db: [row.id for row in db.exec_driver_sql("SELECT id FROM runs ORDER BY served_at")]
    )
    assert order == [first.id, one[0].id, many[0].id, one[1].id, many[1].id, many[2].id]


async def test_a_trainer_that_stops_leaves_jobs_that_go_on_by_themselves(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        made = await client.create(metadata={"hold": "3"})
        waiting = await client.create()
        await client.at_step(made.id, 3)
        worker = psutil.Process(worker_of(trainer, made.id))
    assert not worker.is_running()
    assert (tmp_path / "trainer" / "jobs" / made.id / "key").read_text().strip() == KEY
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        assert (await client.ended(made.id)).status == "succeeded"
        assert (await client.ended(waiting.id)).status == "succeeded"
        messages = await client.messages(made.id)
        assert "killed" not in " ".join(messages)
        assert messages.count("Fine-tuning job started") == messages.count("Fine-tuning job resumed") == 1
        assert len(messages) == len({*messages})


@pytest.mark.slow
async def test_a_worker_that_outlives_its_trainer_is_found_again(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway, stop_s=0.1) as trainer:
        client = trainer.client()
        made = await client.create(metadata={"hold": "3", "deaf": "yes"})
        await client.at_step(made.id, 3)
        worker = psutil.Process(worker_of(trainer, made.id))
    assert worker.is_running()
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        assert (await client.openai.fine_tuning.jobs.retrieve(made.id)).status == "running"
        assert trainer.trainer.supervisor.working() == [worker.pid]
        worker.send_signal(signal.SIGKILL)
        assert (await client.ended(made.id)).status == "succeeded"
        (warned,) = [event.message for event in await client.events(made.id) if event.level == "warn"]
        assert warned == "The worker disappeared; resuming from checkpoint step-00000003"


@pytest.mark.slow
async def test_a_worker_that_was_still_starting_when_its_trainer_died_is_left_to_do_the_job(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    """The new trainer sees no lock yet and starts another worker, which finds the job taken."""

    def behind(gate: Path) -> Any:
        def command(folder: Path, stage: Any) -> list[str]:
            work = " ".join(stand_in(folder, stage))
            return ["sh", "-c", f"while [ ! -e '{gate}' ]; do sleep 0.05; done; exec {work}"]

        return command

    first, second, goes_on = (tmp_path / name for name in ("first may go", "second may go", "the job goes on"))
    async with running(tmp_path, base_dir, gateway) as trainer:
        steps = {"steps": "6", "hold": "2", "wait_at": "4", "wait_for": str(goes_on)}
        made = await trainer.client().create(metadata=steps)
        await trainer.client().at_step(made.id, 2)
    folder = tmp_path / "trainer" / "jobs" / made.id
    orphan = supervisor.spawn(folder, behind(first)(folder, TRAIN))
    async with running(tmp_path, base_dir, gateway, command=behind(second)) as trainer:
        await until(lambda: trainer.trainer.supervisor.working() not in ([], [orphan.pid]))
        client = trainer.client()
        first.touch()
        await client.at_step(made.id, 4)
        second.touch()
        await until(lambda: trainer.trainer.supervisor.working() == [orphan.pid])
        goes_on.touch()
        assert (await client.ended(made.id)).status == "succeeded"
        assert await client.steps(made.id) == list(range(1, 7))
    await until(lambda: orphan.poll() == process.WorkerExit(0))


@pytest.mark.slow
async def test_a_key_outlives_a_gateway_that_is_away_but_not_the_job(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway) as trainer:
        client = trainer.client()
        gateway.away = True
        made = await client.create()
        job = await client.ended(made.id)
        assert (job.status, job.result_files) == ("succeeded", [])
        spent = trainer.trainer.jobs.directories.keys_to_revoke / made.id
        await until(spent.exists)
        assert oct(spent.stat().st_mode & 0o777) == "0o600"
        assert KEY in gateway.keys
    gateway.away = False
    async with running(tmp_path, base_dir, gateway):
        await until(lambda: KEY not in gateway.keys and not spent.exists())


async def test_what_a_crash_left_half_made_is_cleared_away(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    orphan = tmp_path / "trainer" / "jobs" / "ftjob-orphan"
    orphan.mkdir(parents=True)
    (orphan / "key").write_text(KEY)
    (orphan.parent / ".new-ftjob-half").mkdir()
    async with running(tmp_path, base_dir, gateway) as trainer:
        assert trainer.trainer.jobs.directories.ids() == []
        assert not (orphan.parent / ".new-ftjob-half").exists()
        await until(lambda: KEY not in gateway.keys)


async def test_folders_beside_a_database_that_was_lost_are_not_removed(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    """No crash leaves a folder in which a worker has begun, and a database without any run."""
    folder = tmp_path / "trainer" / "jobs" / "ftjob-lost"
    folder.mkdir(parents=True)
    (folder / "key").write_text(KEY)
    (folder / "events.jsonl").write_text("")
    with pytest.raises(SettingsError, match=r"knows no run, but .*trainer/jobs has the folders of 1 \(ftjob-lost"):
        async with running(tmp_path, base_dir, gateway):
            pytest.fail("it must not start")
    assert (folder / "events.jsonl").exists()
    assert KEY in gateway.keys
    shutil.move(folder, tmp_path / "away")
    async with running(tmp_path, base_dir, gateway) as trainer:
        assert trainer.trainer.jobs.directories.ids() == []


@pytest.mark.slow
async def test_a_job_whose_folder_somebody_has_removed_fails_and_holds_up_nobody(
    client: Client, trainer: Running
) -> None:
    first = await client.create(metadata={"hold": "1"})
    lost, other = await client.create(), await client.create()
    for made in (lost, other):
        await client.until(made.id, lambda job: job.status == "queued")
    shutil.rmtree(trainer.trainer.jobs.directories.path_of(lost.id))
    await client.openai.fine_tuning.jobs.cancel(first.id)
    assert (await client.ended(other.id)).status == "succeeded"
    job = await client.ended(lost.id)
    assert (job.status, job.error.code) == ("failed", "worker_killed")


async def test_an_order_that_a_killed_trainer_had_not_passed_on_is_passed_on(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    async with running(tmp_path, base_dir, gateway, stop_s=0.1) as trainer:
        made = await trainer.client().create(metadata={"hold": "3", "deaf": "yes"})
        await trainer.client().at_step(made.id, 3)
    control = tmp_path / "trainer" / "jobs" / made.id / "control"
    control.write_text("pause")  # after which the job was resumed, and the trainer killed before it could say so
    async with running(tmp_path, base_dir, gateway, stop_s=0.1):
        await until(lambda: control.read_text() == "run\n")


@pytest.mark.slow
async def test_big_files_go_after_their_time(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> None:
    async with running(tmp_path, base_dir, gateway) as trainer:
        made = await trainer.client().create()
        await trainer.client().ended(made.id)
        folder = trainer.trainer.jobs.directories.path_of(made.id)
        assert (folder / "checkpoints").exists()
    await asyncio.sleep(1)
    async with running(tmp_path, base_dir, gateway, keep_days=0) as trainer:
        await until(lambda: not (folder / "checkpoints").exists())
        assert (folder / "report.json").exists()
        assert (await trainer.client().ended(made.id)).status == "succeeded"


async def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true")
