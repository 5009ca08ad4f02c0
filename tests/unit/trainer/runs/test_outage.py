"""The answer to COMMIT is lost as runs are created: what is saved keeps its directory, with its spec and its key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.postgresql import TestServer
from tests.support.postgresql_proxy import Proxy, databases_behind_proxy
from tests.unit.trainer.finetune.conftest import KEY, FakeGateway, gateway
from tests.unit.trainer.runs.child_runs import Trainer, running
from tests.unit.trainer.runs.child_tasks import Task
from tests.unit.trainer.worker_processes import end_workers
from trainer.database import OutcomeUnknown
from trainer.errors import DatabaseUnavailable
from trainer.runs.children import Children
from trainer.runs.kind import Wait

__all__ = ["end_workers", "gateway"]


@pytest.fixture
async def proxy(postgresql: TestServer) -> AsyncIterator[Proxy]:
    async with databases_behind_proxy(postgresql) as proxy:
        yield proxy


@pytest.fixture
async def trainer(proxy: Proxy, tmp_path: Path, gateway: FakeGateway) -> AsyncIterator[Trainer]:
    async with running(tmp_path, gateway) as trainer:
        await trainer.supervisor.stop()  # no worker is needed
        yield trainer


async def test_a_run_is_created_though_the_answer_to_commit_is_lost(trainer: Trainer, proxy: Proxy) -> None:
    proxy.lose_after = b"INSERT INTO runs"
    run = await trainer.get(await trainer.create(Task()))
    assert (proxy.losses, trainer.kind.directories.key(run.id)) == (1, KEY)


async def test_a_run_in_doubt_keeps_its_directory(trainer: Trainer, proxy: Proxy) -> None:
    proxy.lose_after = b"INSERT INTO runs"
    proxy.is_away_after_loss = True
    with pytest.raises(OutcomeUnknown):
        await trainer.create(Task())
    (run_id,) = trainer.kind.directories.ids()
    assert trainer.kind.directories.key(run_id) == KEY
    proxy.come_back()
    assert (await trainer.get(run_id)).id == run_id


async def test_a_run_that_was_not_saved_leaves_no_directory(trainer: Trainer, proxy: Proxy) -> None:
    proxy.cut_after = b"INSERT INTO runs"
    with pytest.raises(DatabaseUnavailable):
        await trainer.create(Task())
    assert trainer.kind.directories.ids() == []


@pytest.mark.parametrize("is_away", [False, True])
async def test_child_runs_that_are_saved_keep_their_directories(trainer: Trainer, proxy: Proxy, is_away: bool) -> None:
    parent = await trainer.get(await trainer.create(Task()))
    drafts = tuple(trainer.kind.draft(Task(number=number)) for number in range(2))
    proxy.lose_after = b"INSERT INTO runs"
    proxy.is_away_after_loss = is_away
    children = Children(trainer.database, {trainer.kind.name: trainer.kind})
    with pytest.raises(OutcomeUnknown) if is_away else nullcontext():
        await children.start(trainer.kind, parent, Wait(drafts))
    proxy.come_back()
    recorded = [child.id for child in await trainer.children(parent.id)]
    assert (proxy.losses, recorded) == (1, [draft.id for draft in drafts])
    assert [trainer.kind.directories.key(run_id) for run_id in recorded] == [KEY, KEY]


async def test_child_runs_that_were_not_saved_leave_no_directories(trainer: Trainer, proxy: Proxy) -> None:
    parent = await trainer.get(await trainer.create(Task()))
    proxy.cut_after = b"INSERT INTO runs"
    children = Children(trainer.database, {trainer.kind.name: trainer.kind})
    with pytest.raises(DatabaseUnavailable):
        await children.start(trainer.kind, parent, Wait((trainer.kind.draft(Task(number=1)),)))
    assert trainer.kind.directories.ids() == [parent.id]
