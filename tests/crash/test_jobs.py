"""Fine-tuning jobs and kill -9: of the worker, of the trainer, of whoever started it. Real processes, a real training
of a base of two layers, and a gateway of bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI

from tests.unit.trainer.conftest import base_dir
from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, gateway, jsonl, rows
from tests.unit.trainer.finetune.trainers import PATIENCE_S, Client, context, gateway_headers
from tests.unit.trainer.through_gateway import CONTEXT_HEADER, ThroughGateway
from trainer.runs.directories import RunDirectories

__all__ = ["base_dir", "gateway"]

START_S = 180.0
ENDED_S = 180.0
LONG = {"n_epochs": 25, "batch_size": 4, "lora_rank": 4, "learning_rate": 1e-3}
"""100 steps, each of which is a checkpoint here."""
AT_ONCE = 8
"""Requests of a judging."""
IDLE, BUSY = (0, 0), (3, 4)
"""The gateway's load; a training stands still while it is busy."""


class Daemon:
    """A trainer in a process of its own."""

    def __init__(self, home: Path, base: Path, gateway: FakeGateway) -> None:
        self.home, self.socket = home, home / "t.sock"
        self.place = RunDirectories(home / "trainer" / "jobs", home / "trainer" / "spent", ())
        self.command = [
            *(sys.executable, "-m", "trainer", "--home", str(home), "--socket", str(self.socket)),
            *("--gateway", gateway.url, "--base", str(base), "--base-name", "tiny", "--max-rank", "16"),
            *("--context", "256"),
        ]
        self.environment = os.environ | {
            "HATRACK_TRAINER_DEVICE": "cpu",
            "HATRACK_TRAINER_CHECKPOINT_S": "0",
            # a training stands still as long as a test looks at something else, and ends when it is told to,
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
        until(self.answers, "the trainer's answer", START_S)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(ENDED_S)

    def worker(self, job_id: str) -> psutil.Process:
        until(lambda: self.place.worker(job_id), "a worker")
        pid = self.place.worker(job_id)
        assert pid
        return psutil.Process(pid)

    def steps(self, job_id: str) -> list[int]:
        """As the worker has said them."""
        path = self.place.path_of(job_id) / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith(b"}")]
        return [event["data"]["step"] for event in found if event["type"] == "metrics"]


def until(true: Callable[[], Any], what: str, patience_s: float = 300.0) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


@pytest.fixture
def daemon(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> Iterator[Daemon]:
    gateway.files["train"] = jsonl(rows())
    found = Daemon(tmp_path, base_dir, gateway)
    found.start()
    yield found
    if found.process is not None and found.process.poll() is None:
        found.end()
    jobs = tmp_path / "trainer" / "jobs"
    left = [pid for job in jobs.iterdir() if (pid := found.place.worker(job.name))]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], "a worker was left"


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    transport = ThroughGateway(httpx.AsyncHTTPTransport(uds=str(daemon.socket), retries=3))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://trainer", headers=gateway_headers(), timeout=300
    ) as http:
        yield Client(http, AsyncOpenAI(api_key="x", base_url="http://trainer/v1", http_client=http, max_retries=3))


async def create(client: Client, **hyperparameters: Any) -> Any:
    told = {CONTEXT_HEADER: context(content=jsonl(rows()))}
    return await client.create(told, hyperparameters=LONG | hyperparameters, seed=3)


async def test_a_killed_worker_loses_at_most_one_checkpoint(
    daemon: Daemon, client: Client, gateway: FakeGateway
) -> None:
    assert oct(daemon.socket.stat().st_mode & 0o777) == "0o600"
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
                worker = daemon.worker(made.id)
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
    assert len(gateway.pushed) == 1
    checkpoints = [c async for c in client.openai.fine_tuning.jobs.checkpoints.list(made.id, limit=100)]
    assert [c.step_number for c in checkpoints] == list(range(100, 0, -4))
    assert checkpoints[0].metrics.full_valid_loss is not None
    until(lambda: KEY not in gateway.keys, "the end of the job's key")


async def test_a_killed_trainer_finds_its_job_again_and_a_polite_stop_resumes(
    daemon: Daemon, client: Client, gateway: FakeGateway
) -> None:
    made = await create(client, n_epochs=30)
    until(lambda: daemon.steps(made.id), "steps")
    gateway.load = BUSY
    worker = daemon.worker(made.id)
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    gateway.load = IDLE
    before = daemon.steps(made.id)[-1]
    until(lambda: daemon.steps(made.id)[-1] > before, "a step without a trainer")
    gateway.load = BUSY
    daemon.start()
    assert daemon.place.worker(made.id) == worker.pid
    assert (await client.openai.fine_tuning.jobs.retrieve(made.id)).status == "running"

    await client.openai.fine_tuning.jobs.pause(made.id)  # it waits for ten seconds, and not for ever
    await client.until(made.id, lambda job: job.status == "paused", "the pause")
    assert daemon.place.worker(made.id) is None
    assert (await client.openai.fine_tuning.jobs.resume(made.id)).status in ("queued", "running")
    now = len(daemon.steps(made.id))
    until(lambda: len(daemon.steps(made.id)) > now, "a step after the pause")

    assert daemon.end(signal.SIGTERM) == 0
    assert daemon.place.worker(made.id) is None
    assert (daemon.place.path_of(made.id) / "key").exists()
    gateway.load = IDLE
    daemon.start()
    assert (await client.ended(made.id)).status == "succeeded"
    steps = [event.data["step"] for event in await client.events(made.id) if event.type == "metrics"]
    assert steps == sorted(set(steps)), "something was done twice that had been kept"
    assert steps == daemon.steps(made.id)
    assert steps[-1] == 120


async def test_a_worker_that_is_killed_while_it_judges_asks_nothing_twice(
    daemon: Daemon, client: Client, gateway: FakeGateway
) -> None:
    asked = gateway.engine.asked
    killed = threading.Event()

    def first_some() -> None:
        """More than are on their way at once, so that some have arrived; the others' answers wait for its end."""
        if len(asked) >= AT_ONCE + 4:
            killed.wait(PATIENCE_S)

    gateway.engine.on_answer = first_some
    made = await create(client, n_epochs=1)
    until(lambda: len(asked) >= AT_ONCE + 4, "the first answers")
    daemon.worker(made.id).send_signal(signal.SIGKILL)
    killed.set()
    job = await client.ended(made.id)
    assert (job.status, job.metadata["hatrack_verdict"]) == ("succeeded", "not_enough_evidence")
    # ten examples twice, of the version and of the base; what was on its way when it died is asked for again
    assert 40 <= len(asked) <= 40 + AT_ONCE
    assert len(gateway.pushed) == len(gateway.verdicts) == 1
    assert "resuming from the answers collected so far" in " ".join(await client.messages(made.id))


async def test_a_revoked_key_and_a_cancelled_training(daemon: Daemon, client: Client, gateway: FakeGateway) -> None:
    revoked = await client.create({CONTEXT_HEADER: context(content=jsonl(rows())), "x-hatrack-job-key": "hk_gone"})
    made = await create(client)
    until(lambda: daemon.steps(made.id), "steps")
    gateway.load = BUSY
    await client.openai.fine_tuning.jobs.cancel(made.id)  # it waits for ten seconds, and not for ever
    assert (await client.ended(made.id)).status == "cancelled"
    assert daemon.place.worker(made.id) is None
    assert gateway.pushed == []
    job = await client.ended(revoked.id)
    assert (job.status, job.error.code) == ("failed", "key_revoked")
    assert "Create the job with another" in job.error.message


def test_a_trainer_ends_with_whoever_started_it_and_is_alone_in_its_home(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    daemon = Daemon(tmp_path, base_dir, gateway)
    starter = subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait', "sh", *daemon.command], env=daemon.environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert starter.stdout is not None
    trainer = psutil.Process(int(starter.stdout.readline()))
    until(daemon.answers, "the trainer's answer", START_S)
    second = subprocess.run(
        [*daemon.command], env=daemon.environment, capture_output=True, timeout=START_S, check=False
    )
    assert (second.returncode, b"another trainer is already running" in second.stderr) == (3, True)
    starter.kill()
    starter.wait(ENDED_S)
    starter.stdout.close()
    until(lambda: ended(trainer), "the trainer's end")


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more; in a container there may be nobody to bury it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "--port requires HATRACK_TRAINER_SECRET"),
        (["--socket", "t.sock", "--base", "nowhere"], "config.json"),
        (["--socket", "/nowhere/t.sock"], "cannot listen on /nowhere/t.sock"),
    ],
)
def test_a_wrong_start_is_named(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, arguments: list[str], words: str
) -> None:
    whole = Daemon(tmp_path, base_dir, gateway).command
    at = whole.index("--socket")
    command = [*whole[:at], *whole[at + 2 :], *arguments]
    done = subprocess.run(command, capture_output=True, timeout=START_S, check=False, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
