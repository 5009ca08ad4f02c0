"""Runs that start runs of their own and wait for them: without a worker, under one key, and through crashes.

The workers are real processes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, gateway
from tests.unit.trainer.runs.child_runs import CALLER, PATIENCE_S, Trainer, running
from tests.unit.trainer.runs.child_tasks import FINISH, PARTS, Task, TaskKind
from tests.unit.trainer.worker_processes import end_workers
from trainer.errors import TooManyRequests
from trainer.runs import records, supervisor, transitions
from trainer.runs.children import Children
from trainer.runs.kind import RunDraft
from trainer.runs.protocol import Control
from trainer.runs.state import Run, Status

__all__ = ["end_workers", "gateway"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)


@pytest.fixture
async def trainer(tmp_path: Path, gateway: FakeGateway) -> AsyncIterator[Trainer]:
    async with running(tmp_path, gateway) as found:
        yield found


async def test_a_run_waits_for_its_child_runs_without_a_worker(
    trainer: Trainer, gateway: FakeGateway, tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    grandchildren = ((Task(number=1), Task(number=2)),)
    first, second = (Task(hold=hold), Task(number=4, parts=grandchildren)), (Task(number=8),)
    parent = await trainer.create(Task(parts=(first, second)))
    child = await trainer.child_at_work(parent)
    # each stage has one worker: the child could not have come to its last one if its parent held any
    assert (await trainer.get(parent)).shown_status is Status.RUNNING
    assert trainer.kind.directories.worker(parent) is None
    assert trainer.kind.directories.key(child.id) == KEY
    assert len(await trainer.children(parent)) == 2, "the second round waits for the first"
    hold.touch()
    assert (await trainer.ended(parent)).status is Status.SUCCEEDED
    children = await trainer.children(parent)
    assert [child.body["number"] for child in children] == [0, 4, 8]
    assert [child.status for child in children] == [Status.SUCCEEDED] * 3
    assert [child.body["number"] for child in await trainer.children(children[1].id)] == [1, 2]
    assert (children[0].project, children[0].key_id, children[0].run_key_id) == ("default", "key_1", "key_job")
    ids = [child.id for child in children]
    assert await trainer.events(parent) == [
        "split",
        f"waiting for {ids[0]}, {ids[1]}",
        "split",
        f"waiting for {ids[2]}",
        "all parts are there",
    ]
    for child in children:
        assert trainer.kind.directories.key(child.id) is None, "no key is left of a run that has ended"


async def test_child_runs_are_seen_by_who_sees_their_parent(trainer: Trainer) -> None:
    """A rung of the base alone names no adapter, and shows the data of its ladder."""
    parent = await trainer.create(Task())
    run = replace(await trainer.get(parent), adapters=("shop",), stores=(("vs_1", "public"),))
    draft = RunDraft(trainer.kind.name, "child", Task(), {}, ("voice",), {})
    drafted = Children(trainer.database, {trainer.kind.name: trainer.kind})._new_run(run, draft)
    assert (drafted.adapters, drafted.stores) == (("shop", "voice"), run.stores)


async def test_the_key_is_revoked_at_the_end_of_the_parent_alone(
    trainer: Trainer, gateway: FakeGateway, tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    parent = await trainer.create(Task(parts=((Task(number=1),),), hold=hold))
    await trainer.until(parent, lambda run: run.status is Status.RUNNING and run.details.get("rounds") == 2)
    assert [child.status for child in await trainer.children(parent)] == [Status.SUCCEEDED]
    assert list(trainer.kind.directories.keys_to_revoke.iterdir()) == []
    assert (KEY in gateway.keys, trainer.kind.directories.key(parent)) == (True, KEY)
    hold.touch()
    await trainer.ended(parent)
    await until(lambda: KEY not in gateway.keys)


async def test_a_cancelled_run_takes_its_child_runs_with_it(trainer: Trainer, gateway: FakeGateway) -> None:
    held = Task(hold=Path("/nowhere"))
    parent = await trainer.create(Task(parts=((Task(parts=((held,),)), held),)))
    await trainer.until(parent, lambda run: run.status is Status.WAITING)
    await trainer.until((await trainer.children(parent))[0].id, lambda run: run.status is Status.WAITING)
    assert (await trainer.tasks.cancel(CALLER, parent))["status"] == Status.CANCELLED
    below = await trainer.children(parent)
    below += [grandchild for child in below for grandchild in await trainer.children(child.id)]
    assert [run.status for run in below] == [Status.CANCELLED] * 3
    await until(lambda: KEY not in gateway.keys)


@pytest.mark.slow
async def test_a_child_in_a_long_step_is_ended_at_once_if_its_parent_is_cancelled_and_not_if_it_alone_is(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CHILD_PATIENCE_S", 0.0)
    monkeypatch.setattr(TaskKind, "cancel_patience_s", 100 * PATIENCE_S)
    parent = await trainer.create(Task(parts=((Task(hold=tmp_path / "never", deaf=True),),)))
    child = await trainer.child_at_work(parent)
    watches = trainer.supervisor._watches
    # in its first stage, or between the two, it would end by itself
    await until(lambda: child.id in watches and watches[child.id].stage.name == FINISH.name)
    await until(lambda: trainer.kind.directories.worker(child.id) is not None)  # its process has begun
    await trainer.database.run(partial(records.request_control, run_id=child.id, control=Control.CANCEL))
    await until(lambda: watches[child.id].cancelled_at is not None)
    await asyncio.sleep(10 * supervisor.TICK_S)  # at any of these ticks it could be killed
    assert trainer.kind.directories.worker(child.id) is not None
    await trainer.tasks.cancel(CALLER, parent)
    assert (await trainer.ended(parent)).status is Status.CANCELLED
    assert (await trainer.get(child.id)).status is Status.CANCELLED
    assert trainer.kind.directories.worker(child.id) is None


@pytest.mark.slow
async def test_a_paused_run_pauses_its_child_runs_until_it_is_resumed(trainer: Trainer, tmp_path: Path) -> None:
    hold = tmp_path / "go"
    parent = await trainer.create(Task(parts=((Task(hold=hold), Task(number=2)),)))
    child = await trainer.child_at_work(parent)
    assert (await trainer.tasks.pause(CALLER, parent))["status"] == Status.PAUSED
    await trainer.until(child.id, lambda run: run.status is Status.PAUSED)
    hold.touch()
    other = (await trainer.children(parent))[1]
    await trainer.until(other.id, lambda run: run.status is Status.PAUSED)
    assert (await trainer.get(parent)).shown_status is Status.PAUSED
    assert (await trainer.tasks.resume(CALLER, parent))["status"] == Status.RUNNING
    assert (await trainer.ended(parent)).status is Status.SUCCEEDED


@pytest.mark.slow
async def test_children_that_have_ended_do_not_continue_a_paused_run(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = tmp_path / "go"
    parent = await trainer.create(Task(parts=((Task(hold=hold),),)))
    child = await trainer.child_at_work(parent)
    await trainer.tasks.pause(CALLER, parent)
    await trainer.until(child.id, lambda run: run.status is Status.PAUSED)
    hold.touch()
    await trainer.tasks.resume(CALLER, child.id)
    await trainer.ended(child.id)
    moves, looks = trainer.supervisor._transitions, list[str]()
    resume_parent = moves.resume_parent

    async def recorded(kind: Any, run: Run) -> None:
        await resume_parent(kind, run)
        looks.append(run.id)

    monkeypatch.setattr(moves, "resume_parent", recorded)
    await until(lambda: looks.count(parent) >= 2)
    assert (await trainer.get(parent)).shown_status is Status.PAUSED
    await trainer.tasks.resume(CALLER, parent)
    assert (await trainer.ended(parent)).status is Status.SUCCEEDED


@pytest.mark.slow
async def test_a_pause_requested_while_the_child_runs_are_recorded_holds_for_them(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_ended = trainer.kind.stage_ended

    async def meanwhile(run: Run, *arguments: Any) -> Any:
        following = await stage_ended(run, *arguments)
        await trainer.database.run(partial(records.request_control, run_id=run.id, control=Control.PAUSE))
        return following

    with monkeypatch.context() as patch:
        patch.setattr(trainer.kind, "stage_ended", meanwhile)
        parent = await trainer.create(Task(parts=((Task(),),)))
        await trainer.until(parent, lambda run: run.status is Status.WAITING)
        (child,) = await trainer.children(parent)
        await trainer.until(child.id, lambda run: run.status is Status.PAUSED)
    await trainer.tasks.resume(CALLER, parent)
    assert (await trainer.ended(parent)).status is Status.SUCCEEDED


@pytest.mark.slow
async def test_what_follows_from_a_child_that_did_not_succeed_is_the_kinds_decision(trainer: Trainer) -> None:
    parent = await trainer.create(Task(parts=((Task(hold=Path("/nowhere")),),)))
    child = await trainer.child_at_work(parent)
    await trainer.tasks.cancel(CALLER, child.id)
    ended = await trainer.ended(parent)
    assert ended.status is Status.FAILED
    assert ended.result is not None
    assert ended.result["error"]["code"] == "child_failed"


@pytest.mark.slow
async def test_a_waiting_run_goes_on_under_the_next_trainer(tmp_path: Path, gateway: FakeGateway) -> None:
    hold = tmp_path / "go"
    async with running(tmp_path, gateway) as trainer:
        parent = await trainer.create(Task(parts=((Task(hold=hold),), (Task(number=2),))))
        await trainer.child_at_work(parent)
        # as kill -9 between the directory of a child and its record leaves it
        trainer.kind.directories.create("task-unknown", Task(), KEY, shared_key=True)
    async with running(tmp_path, gateway) as trainer:
        assert not trainer.kind.directories.path_of("task-unknown").exists()
        assert (await trainer.get(parent)).status is Status.WAITING
        hold.touch()
        assert (await trainer.ended(parent)).status is Status.SUCCEEDED
        assert len(await trainer.children(parent)) == 2
        await until(lambda: KEY not in gateway.keys)
    assert gateway.asked.count("DELETE /v1/keys/current") == 1, "the orphan's key is its parent's"


@pytest.mark.slow
async def test_a_trainer_that_stops_while_child_runs_are_recorded_leaves_them_whole(
    tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, go_on = threading.Event(), threading.Event()
    record = Children._record

    def slow(self: Children, db: sa.Connection, **values: Any) -> None:
        record(self, db, **values)
        recorded.set()
        assert go_on.wait(PATIENCE_S)

    with monkeypatch.context() as patch:
        patch.setattr(Children, "_record", slow)
        async with running(tmp_path, gateway) as trainer:
            parent = await trainer.create(Task(parts=((Task(), Task()),)))
            await until(recorded.is_set)
            for task in (*trainer.supervisor._tasks.values(), *trainer.supervisor._resuming.values()):
                task.cancel()
            go_on.set()
    async with running(tmp_path, gateway) as trainer:
        assert (await trainer.ended(parent)).status is Status.SUCCEEDED
        assert len(await trainer.children(parent)) == 2


@pytest.mark.slow
async def test_a_stage_whose_end_was_not_recorded_is_not_taken_for_done(
    tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has left its output, the trainer dies before it knows, and a pause is requested meanwhile."""

    async def dead(*_: Any) -> bool:
        await asyncio.sleep(PATIENCE_S)
        return True

    async with running(tmp_path, gateway) as trainer:
        monkeypatch.setattr(trainer.supervisor._transitions, "advance", dead)
        parent = await trainer.create(Task(parts=((Task(),),)))
        directories = trainer.kind.directories
        await until(lambda: directories.read_bytes(parent, PARTS) is not None and directories.worker(parent) is None)
        await trainer.database.run(partial(records.request_control, run_id=parent, control=Control.PAUSE))
        for task in trainer.supervisor._tasks.values():
            task.cancel()
    async with running(tmp_path, gateway) as trainer:
        await trainer.until(parent, lambda run: run.shown_status is Status.PAUSED)
        await trainer.tasks.resume(CALLER, parent)
        assert (await trainer.ended(parent)).status is Status.SUCCEEDED
        assert len(await trainer.children(parent)) == 1


@pytest.mark.slow
async def test_a_parent_that_cannot_go_on_is_given_up(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    async def broken(run: Run, _children: list[Run]) -> None:
        attempts.append(run.kills)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(transitions, "BACK_OFF_S", (0.0, 0.05, 0.05))
    monkeypatch.setattr(trainer.kind, "children_ended", broken)
    parent = await trainer.create(Task(parts=((Task(),),)))
    assert (await trainer.ended(parent)).status is Status.FAILED
    assert attempts == [0, 1, 2, 3]


@pytest.mark.slow
async def test_an_ended_child_is_kept_whole_until_its_parent_ends(trainer: Trainer, tmp_path: Path) -> None:
    hold = tmp_path / "go"
    parent = await trainer.create(Task(parts=((Task(),),), hold=hold))
    await trainer.until(parent, lambda run: run.details.get("rounds") == 2)
    stale = partial(records.stale, kind="task", finished_before=time.time() + 60)
    assert await trainer.database.run(stale) == []
    hold.touch()
    await trainer.ended(parent)
    assert len(await trainer.database.run(stale)) == 2


@pytest.mark.slow
async def test_a_full_disk_ends_the_parent_and_leaves_no_half_of_its_child_runs(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, made = trainer.kind.directories.create, []

    def full(run_id: str, *arguments: Any, **options: Any) -> None:
        if made:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        create(run_id, *arguments, **options)
        made.append(run_id)

    parent = await trainer.create(Task(parts=((Task(hold=Path("/nowhere")),),) * 2))
    child = await trainer.child_at_work(parent)
    other = await trainer.create(Task(parts=((Task(), Task()),)))
    monkeypatch.setattr(trainer.kind.directories, "create", full)
    assert (await trainer.ended(other)).status is Status.FAILED
    assert await trainer.children(other) == []
    assert not trainer.kind.directories.path_of(made[0]).exists()
    assert (await trainer.get(child.id)).status is Status.RUNNING
    await trainer.tasks.cancel(CALLER, parent)


async def test_child_runs_are_listed_and_count_as_their_parent(tmp_path: Path, gateway: FakeGateway) -> None:
    async with running(tmp_path, gateway, max_queued=1) as trainer:
        parent = await trainer.create(Task(parts=((Task(hold=Path("/nowhere")), Task()),)))
        await trainer.child_at_work(parent)
        page = await trainer.tasks.page(CALLER, after=None, limit=10)
        assert [run["id"] for run in page["data"]][-1] == parent
        assert len(page["data"]) == 3
        assert await trainer.database.run(partial(records.open_runs, kind="task", project="default")) == 1
        with pytest.raises(TooManyRequests, match="1 unfinished task"):
            await trainer.create(Task())
        claimed = await trainer.tasks.claim(CALLER, "key_job")
        assert claimed is not None
        assert claimed["id"] == parent
        await trainer.tasks.cancel(CALLER, parent)


async def until(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
