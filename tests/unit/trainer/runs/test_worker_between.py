"""Runs that have a worker of their own again between two rounds of child runs, as a ladder has to ask a teacher."""

from __future__ import annotations

from pathlib import Path

from tests.unit.trainer.finetune.conftest import FakeGateway, gateway
from tests.unit.trainer.runs.child_runs import running
from tests.unit.trainer.runs.child_tasks import BetweenKind, Task
from tests.unit.trainer.runs.test_children import _quick
from tests.unit.trainer.worker_processes import end_workers
from trainer.runs.state import Status

__all__ = ["_quick", "end_workers", "gateway"]


async def test_a_run_may_have_a_worker_again_between_two_rounds(gateway: FakeGateway, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with running(tmp_path, gateway, tasks_of=BetweenKind) as trainer:
        parent = await trainer.create(Task(parts=((Task(number=1),), (Task(number=2),)), between=go))
        at_work = await trainer.until(parent, lambda run: run.status is Status.LABELLING)
        assert at_work.shown_status is Status.RUNNING
        assert [child.body["number"] for child in await trainer.children(parent)] == [1]
        go.touch()
        assert (await trainer.ended(parent)).status is Status.SUCCEEDED
        assert [child.body["number"] for child in await trainer.children(parent)] == [1, 2]
        assert (await trainer.events(parent)).count("between two rounds") == 2
