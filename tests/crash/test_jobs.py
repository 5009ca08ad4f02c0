"""Fine-tuning jobs and kill -9 of the worker, the trainer, and the trainer's parent. Real processes, a real training
of a base of two layers, and a fake gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI

from tests.support.processes import is_running
from tests.support.waiting import wait_until
from tests.unit.trainer.conftest import base_dir
from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, gateway, jsonl, rows
from tests.unit.trainer.finetune.trainers import PATIENCE_S, Client, context, gateway_headers
from tests.unit.trainer.through_gateway import CONTEXT_HEADER, ThroughGateway
from trainer.config import Settings as TrainerSettings
from trainer.runs.directories import RunDirectories

__all__ = ["base_dir", "gateway"]

START_S = 180.0
ENDED_S = 180.0
LONG = {"n_epochs": 25, "batch_size": 4, "lora_rank": 4, "learning_rate": 1e-3}
"""100 steps, each of which is a checkpoint here."""
AT_ONCE = int(TrainerSettings.model_fields["evaluate_concurrency"].default)
"""Concurrent requests of an evaluation."""
IDLE, BUSY = (0, 0), (3, 4)
"""The gateway's load; a training is paused while it is busy."""


class TrainerProcess:
    """A trainer in a process of its own."""

    def __init__(self, home: Path, base: Path, gateway: FakeGateway) -> None:
        self.home, self.socket = home, home / "t.sock"
        self.directories = RunDirectories(home / "trainer" / "jobs", home / "trainer" / "spent", ())
        self.command = [
            *(sys.executable, "-m", "trainer", "--home", str(home), "--socket", str(self.socket)),
            *("--gateway", gateway.url, "--base", str(base), "--base-name", "tiny", "--max-rank", "16"),
            *("--context", "256"),
        ]
        self.environment = os.environ | {
            "HATRACK_TRAINER_DEVICE": "cpu",
            "HATRACK_TRAINER_CHECKPOINT_S": "0",
            "HATRACK_TRAINER_FORGET_ITEMS": "20",
            # a training stays paused as long as a test looks at something else, and ends when it is stopped,
            # however slow the machine is
            "HATRACK_TRAINER_YIELD_MOST_S": "600",
            "HATRACK_TRAINER_STOP_S": "120",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.home / "log").open("ab")
        with log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        # one core: two threads that wait for each other are slow where somebody else is at the cores, too
        psutil.Process(self.process.pid).cpu_affinity([min(os.sched_getaffinity(0))])
        wait_until(self.answers, "the trainer did not answer", timeout_s=START_S)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(ENDED_S)

    def worker(self, job_id: str) -> psutil.Process:
        wait_until(lambda: self.directories.worker(job_id), "there is no worker")
        pid = self.directories.worker(job_id)
        assert pid
        return psutil.Process(pid)

    def steps(self, job_id: str) -> list[int]:
        """The steps that the worker has reported."""
        path = self.directories.path_of(job_id) / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [event["data"]["step"] for event in events if event["type"] == "metrics"]


@pytest.fixture
def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> Iterator[TrainerProcess]:
    gateway.files["train"] = jsonl(rows())
    started = TrainerProcess(tmp_path, base_dir, gateway)
    started.start()
    yield started
    if started.process is not None and started.process.poll() is None:
        started.end()
    jobs = tmp_path / "trainer" / "jobs"
    left = [pid for job in jobs.iterdir() if (pid := started.directories.worker(job.name))]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "a worker was left"


@pytest.fixture
async def client(trainer: TrainerProcess) -> AsyncIterator[Client]:
    transport = ThroughGateway(httpx.AsyncHTTPTransport(uds=str(trainer.socket), retries=3))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://trainer", headers=gateway_headers(), timeout=300
    ) as http:
        yield Client(http, AsyncOpenAI(api_key="x", base_url="http://trainer/v1", http_client=http, max_retries=3))


async def create(client: Client, **hyperparameters: Any) -> Any:
    headers = {CONTEXT_HEADER: context(content=jsonl(rows()))}
    return await client.create(headers, hyperparameters=LONG | hyperparameters, seed=3)


async def test_a_killed_worker_loses_at_most_one_checkpoint(
    trainer: TrainerProcess, client: Client, gateway: FakeGateway
) -> None:
    assert oct(trainer.socket.stat().st_mode & 0o777) == "0o600"
    made = await create(client)
    assert made.status == "validating_files"
    seen: list[dict[str, Any]] = []
    worker: psutil.Process | None = None
    async with client.http.stream("GET", f"/v1/fine_tuning/jobs/{made.id}/events?stream=true") as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            seen.append(json.loads(line[6:]))
            if worker is None and seen[-1]["type"] == "metrics" and seen[-1]["data"]["step"] > 8:
                worker = trainer.worker(made.id)
                assert os.sched_getscheduler(worker.pid) == os.SCHED_IDLE
                worker.send_signal(signal.SIGKILL)
    assert line == ""
    job = await client.openai.fine_tuning.jobs.retrieve(made.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "voice@1")
    (gap,) = [at for at, event in enumerate(seen) if event["level"] == "warn" and "SIGKILL" in event["message"]]
    steps = [[e["data"]["step"] for e in part if e["type"] == "metrics"] for part in (seen[:gap], seen[gap:])]
    assert steps[1][0] >= steps[0][-1], "more than one step was done again"
    kept = re.search(r"checkpoint step-(\d+)$", seen[gap]["message"])
    assert kept is not None
    assert steps[1][0] == int(kept[1]) + 1
    assert steps[1][-1] == 100
    assert "hatrack promote voice@1" in seen[-1]["message"]
    results = [push for push in gateway.pushed if push["alias"] == b"candidate"]
    assert len(results) == 1  # beside the versions of earlier epochs, which expire
    checkpoints = [c async for c in client.openai.fine_tuning.jobs.checkpoints.list(made.id, limit=100)]
    assert [c.step_number for c in checkpoints] == list(range(100, 0, -4))
    assert checkpoints[0].metrics.full_valid_loss is not None
    wait_until(lambda: KEY not in gateway.keys, "the job's key was not revoked")


async def test_a_restarted_trainer_adopts_its_running_job_and_resumes_it_after_sigterm(
    trainer: TrainerProcess, client: Client, gateway: FakeGateway
) -> None:
    made = await create(client, n_epochs=30)
    wait_until(lambda: trainer.steps(made.id), "no step was reported")
    gateway.load = BUSY
    worker = trainer.worker(made.id)
    assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
    gateway.load = IDLE
    before = trainer.steps(made.id)[-1]
    wait_until(lambda: trainer.steps(made.id)[-1] > before, "no step came without a trainer")
    gateway.load = BUSY
    trainer.start()
    assert trainer.directories.worker(made.id) == worker.pid
    assert (await client.openai.fine_tuning.jobs.retrieve(made.id)).status == "running"

    await client.openai.fine_tuning.jobs.pause(made.id)  # it waits for ten seconds, and not for ever
    await client.until(made.id, lambda job: job.status == "paused", "the pause")
    assert trainer.directories.worker(made.id) is None
    assert (await client.openai.fine_tuning.jobs.resume(made.id)).status in ("queued", "running")
    now = len(trainer.steps(made.id))
    wait_until(lambda: len(trainer.steps(made.id)) > now, "no step came after the pause")

    assert trainer.end(signal.SIGTERM) == 0
    assert trainer.directories.worker(made.id) is None
    assert (trainer.directories.path_of(made.id) / "key").exists()
    gateway.load = IDLE
    trainer.start()
    assert (await client.ended(made.id)).status == "succeeded"
    steps = [event.data["step"] for event in await client.events(made.id) if event.type == "metrics"]
    assert steps == sorted(set(steps)), "something was done twice that had been kept"
    assert steps == trainer.steps(made.id)
    assert steps[-1] == 120


async def test_a_worker_killed_while_evaluating_repeats_no_answered_request(
    trainer: TrainerProcess, client: Client, gateway: FakeGateway
) -> None:
    asked = gateway.engine.asked
    killed = threading.Event()

    def first_some() -> None:
        """More than are on their way at once, so that some have arrived; the others' answers wait for its end."""
        if len(asked) >= AT_ONCE + 4:
            killed.wait(PATIENCE_S)

    gateway.engine.on_answer = first_some
    made = await create(client, n_epochs=1)
    wait_until(lambda: len(asked) >= AT_ONCE + 4, "the first answers did not come")
    trainer.worker(made.id).send_signal(signal.SIGKILL)
    killed.set()
    job = await client.ended(made.id)
    assert (job.status, job.metadata["hatrack_verdict"]) == ("succeeded", "not_enough_evidence")
    # ten examples: twice of the version and of the base, once of the base that is shown examples; what was on its way
    # when it died is asked for again
    assert 50 <= len(asked) <= 50 + AT_ONCE
    assert len(gateway.pushed) == len(gateway.verdicts) == 1
    assert "resuming from the answers collected so far" in " ".join(await client.messages(made.id))


async def test_a_revoked_key_fails_its_job_and_a_cancelled_training_stops_its_worker(
    trainer: TrainerProcess, client: Client, gateway: FakeGateway
) -> None:
    revoked = await client.create({CONTEXT_HEADER: context(content=jsonl(rows())), "x-hatrack-job-key": "hk_gone"})
    made = await create(client)
    wait_until(lambda: trainer.steps(made.id), "no step was reported")
    gateway.load = BUSY
    await client.openai.fine_tuning.jobs.cancel(made.id)  # it waits for ten seconds, and not for ever
    assert (await client.ended(made.id)).status == "cancelled"
    assert trainer.directories.worker(made.id) is None
    assert gateway.pushed == []
    job = await client.ended(revoked.id)
    assert (job.status, job.error.code) == ("failed", "key_revoked")
    assert "Create the job with another" in job.error.message


def test_a_trainer_ends_with_its_parent_and_refuses_a_second_trainer_in_its_home(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    trainer = TrainerProcess(tmp_path, base_dir, gateway)
    starter = subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait', "sh", *trainer.command], env=trainer.environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert starter.stdout is not None
    process = psutil.Process(int(starter.stdout.readline()))
    wait_until(trainer.answers, "the trainer did not answer", timeout_s=START_S)
    second = subprocess.run(
        [*trainer.command], env=trainer.environment, capture_output=True, timeout=START_S, check=False
    )
    assert (second.returncode, b"another trainer is already running" in second.stderr) == (3, True)
    starter.kill()
    starter.wait(ENDED_S)
    starter.stdout.close()
    wait_until(lambda: not is_running(process), "the trainer did not end")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "--port requires HATRACK_TRAINER_SECRET"),
        (["--socket", "t.sock", "--base", "nowhere"], "config.json"),
        (["--socket", "/nowhere/t.sock"], "cannot listen on /nowhere/t.sock"),
    ],
)
def test_a_wrong_start_option_is_named_in_the_error(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, arguments: list[str], words: str
) -> None:
    command = TrainerProcess(tmp_path, base_dir, gateway).command
    at = command.index("--socket")
    command = [*command[:at], *command[at + 2 :], *arguments]
    done = subprocess.run(command, capture_output=True, timeout=START_S, check=False, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
