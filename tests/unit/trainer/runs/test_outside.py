"""What endpoints outside charge: added up by hour for whoever pays, each answer once, and no event of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.unit.trainer.runs.test_database import new_run, opened
from trainer.database import Database
from trainer.runs import journal, outside, records
from trainer.runs.device_time import HOUR_S
from trainer.runs.directories import RunDirectories
from trainer.runs.directory import RunDirectory
from trainer.runs.outside import NO_RUN, ChargedHour, Payer
from trainer.runs.protocol import OutsideCharge
from trainer.runs.state import Status

NOON = 500 * HOUR_S
PRICED = OutsideCharge(endpoint="big", prompt_tokens=30, completion_tokens=5, money=0.25)
UNPRICED = PRICED.model_copy(update={"money": None})


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await opened(tmp_path / "jobs.db")
    yield database
    await database.close()


def sums(charged: ChargedHour) -> tuple[int, int, int, int, float, int]:
    tokens = charged.prompt_tokens, charged.completion_tokens
    return charged.hour, charged.requests, *tokens, charged.money, charged.unpriced


async def test_charges_add_up_by_hour_and_what_is_not_known_is_counted_apart(database: Database) -> None:
    payer = Payer("default", "key_a")

    def work(db: sa.Connection) -> list[ChargedHour]:
        for charge, at in ((PRICED, NOON), (UNPRICED, NOON + 3599.9), (PRICED, NOON + HOUR_S), (PRICED, NOON - 1)):
            outside.add(db, payer, charge, at)
        return outside.recorded(db, NOON, NOON + 2 * HOUR_S)

    charged = await database.run(work)
    assert [sums(each) for each in charged] == [(NOON, 2, 60, 10, 0.25, 1), (NOON + HOUR_S, 1, 30, 5, 0.25, 0)]
    assert {(each.payer, each.run, each.endpoint) for each in charged} == {(payer, None, "big")}


async def test_a_runs_own_key_stands_for_the_run_and_its_creator_while_it_is_under_way(database: Database) -> None:
    def work(db: sa.Connection) -> list[Payer]:
        records.add(db, new_run(1), None)
        payers = [outside.payer_of(db, "default", key) for key in ("j", "k", "nobodys")]
        payers.append(outside.payer_of(db, "another", "j"))
        records.change(db, "ftjob-1", status=Status.CANCELLED)
        return [*payers, outside.payer_of(db, "default", "j")]

    assert await database.run(work) == [
        Payer("default", "k", "ftjob-1"),
        Payer("default", "k", NO_RUN),
        Payer("default", "nobodys", NO_RUN),
        Payer("another", "j", NO_RUN),
        Payer("default", "j", NO_RUN),
    ]


async def test_a_workers_charges_are_read_from_its_events_once_and_are_none_of_them(
    database: Database, tmp_path: Path
) -> None:
    directories = RunDirectories(tmp_path / "runs", tmp_path / "keys", ())
    (tmp_path / "runs" / "ftjob-1").mkdir(parents=True)
    with RunDirectory(tmp_path / "runs" / "ftjob-1") as directory:
        directory.emit_event("judging")
        directory.record_charge(PRICED)
        directory.record_charge(UNPRICED)
        directory.emit_event("judged")
    await database.run(lambda db: records.add(db, new_run(1), None))
    for _ in range(2):
        run = await database.run(lambda db: records.get(db, "ftjob-1"))
        events, offset = directories.tail("ftjob-1", run.events_offset)
        await database.run(lambda db, run=run, new=events, offset=offset: journal.append(db, run, new, offset))  # type: ignore[misc]
    shown = await database.run(lambda db: journal.following(db, "ftjob-1", after=0, limit=10))
    assert [(event.number, event.message) for event in shown] == [(1, "judging"), (2, "judged")]
    (charged,) = await database.run(lambda db: outside.recorded(db, 0, 2**40))
    assert sums(charged)[1:] == (2, 60, 10, 0.25, 1)
    assert charged.payer == Payer("default", "k", "ftjob-1")
    assert charged.run is not None
    assert charged.run.details["adapter"] == "voice"
