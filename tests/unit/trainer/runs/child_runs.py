"""The runner with one kind of run that starts runs of its own; the workers are real processes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapters.protocol.reports import Waiting
from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.runs.child_tasks import Task, TaskKind
from trainer.config import Settings
from trainer.database import Database
from trainer.http import CurrentCaller
from trainer.runs import journal, records
from trainer.runs.children import Children
from trainer.runs.directories import RunDirectories
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.notifier import Notifier
from trainer.runs.service import RunKey, RunService
from trainer.runs.state import Run, Status
from trainer.runs.supervisor import Supervisor
from trainer.runs.transitions import Transitions
from trainer.webhook.sender import WebhookSender

WORKER = Path(__file__).with_name("child_tasks.py")
PATIENCE_S = 240.0
CALLER = CurrentCaller("default", "key_1")


def command(directory: Path, stage: str) -> list[str]:
    return [sys.executable, str(WORKER), str(directory), "--stage", stage]


class Tasks(RunService):
    """What a kind's routes would use."""

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        return {"id": run.id, "status": run.shown_status}


@dataclass
class Trainer:
    """The runner with one kind."""

    database: Database
    kind: TaskKind
    supervisor: Supervisor
    tasks: Tasks

    async def create(self, task: Task) -> str:
        draft = self.kind.draft(task)
        run, _ = await self.tasks.create_run(CALLER, draft, RunKey(KEY, "key_job"), None)
        return run.id

    async def get(self, run_id: str) -> Run:
        return await self.database.run(partial(records.get, run_id=run_id))

    async def children(self, run_id: str) -> list[Run]:
        return await self.database.run(partial(records.children, run_id=run_id))

    async def until(self, run_id: str, wanted: Callable[[Run], bool]) -> Run:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            run = await self.get(run_id)
            if wanted(run):
                return run
            await asyncio.sleep(0.02)
        raise AssertionError(f"it did not come; the run is {run}, its children {await self.children(run_id)}")

    async def ended(self, run_id: str) -> Run:
        return await self.until(run_id, lambda run: run.over)

    async def child_at_work(self, run_id: str) -> Run:
        """The first child of a waiting run, when its last stage runs."""
        await self.until(run_id, lambda run: run.status is Status.WAITING)
        first = (await self.children(run_id))[0]
        return await self.until(first.id, lambda run: run.status is Status.RUNNING)

    async def events(self, run_id: str) -> list[str]:
        found = await self.database.run(partial(journal.following, run_id=run_id, after=0, limit=100))
        return [event.message for event in found]


@asynccontextmanager
async def running(
    home: Path, gateway: FakeGateway, *, max_queued: int = 10, tasks_of: type[TaskKind] = TaskKind
) -> AsyncIterator[Trainer]:
    settings = Settings(device="cpu", stop_s=120.0, max_queued=max_queued)
    database, notifier = Database(home / "jobs.db"), Notifier()
    kind = tasks_of(RunDirectories(home / "tasks", home / "spent", ()), command)
    housekeeper = Housekeeper(gateway.url, settings, database, {kind.name: kind.directories})
    moves = Transitions(
        database, notifier, housekeeper, Children(database, {kind.name: kind}), WebhookSender(database, None)
    )
    runner = Supervisor(settings, database, notifier, moves, [kind])
    tasks = Tasks(kind, settings, database, notifier, runner.lines)
    kind.directories.open()
    await database.open()
    await housekeeper.start()
    await runner.start()
    try:
        yield Trainer(database, kind, runner, tasks)
    finally:
        await runner.stop()
        await housekeeper.stop()
        await database.close()
