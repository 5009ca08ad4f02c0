"""What runs wait for: the order of the line, what is told of the run ahead, and to whom."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.trainer.runs.test_database import new_run, opened
from trainer.runs import records
from trainer.runs.activity import Activity, activity
from trainer.runs.state import Event, Status
from trainer.runs.waiting import describe, duration, in_turn, ordinal

NOW = 10_000.0


def event(number: int, at: float, **data: Any) -> Event:
    kind = "metrics" if "step" in data else "message"
    return Event(run="ftjob-1", number=number, at=at, level="info", type=kind, message=f"event {number}", data=data)


def test_a_run_that_has_told_nothing_is_in_no_known_stage() -> None:
    assert activity([]) == Activity()
    assert activity([event(1, NOW)]) == Activity()
    assert describe(activity([]), named=True) == "which has just started, time left not known"


def test_the_time_left_is_the_measured_one_less_what_has_passed_since() -> None:
    told = [event(2, NOW - 60, step=38, total_steps=60, seconds_left=360.0), event(1, NOW - 90)]
    doing = activity(told, now=NOW)
    assert doing == Activity("training", 38, 60, 300.0)
    assert describe(doing, named=True) == "step 38 of 60, about 5 min of training left"
    assert describe(doing, named=False) == "about 5 min left of the part that it is in"


def test_a_step_that_outlasts_the_estimate_leaves_no_number() -> None:
    doing = activity([event(1, NOW - 400, step=38, total_steps=60, seconds_left=360.0)], now=NOW)
    assert doing.seconds_left is None
    assert describe(doing, named=True) == "step 38 of 60, time left not known"


def test_judging_is_as_fast_as_its_own_events_say() -> None:
    asking = [event(n, NOW - 100 + 10 * n, stage="asking", done=5 * n, total=100) for n in range(10, 0, -1)]
    before = event(0, NOW - 200, step=60, total_steps=60, seconds_left=0.0)
    doing = activity([*asking, before], now=NOW)
    assert doing == Activity("asking", 50, 100, 100.0)
    assert describe(doing, named=True) == "asking: 50 of 100, about 2 min of this part left"


def test_the_first_event_of_a_stage_measures_nothing() -> None:
    asking = event(2, NOW, stage="asking", done=40, total=100)  # the answers of an earlier worker
    assert activity([asking, event(1, NOW - 9, stage="suite", done=9, total=9)], now=NOW).seconds_left is None


@pytest.mark.parametrize(("reason", "words"), [("live_traffic", "for live traffic"), ("gateway", "for the gateway")])
def test_a_run_that_stands_still_has_no_time_left(reason: Any, words: str) -> None:
    step = event(1, NOW - 5, step=1, total_steps=9, seconds_left=500.0)
    doing = activity([event(2, NOW, waits_for=reason), step], now=NOW)
    assert (doing.done, doing.seconds_left, doing.pause) == (1, None, (reason, "event 2"))
    assert words in describe(doing, named=True)
    assert activity([event(3, NOW, paused_s=2.0), event(2, NOW, waits_for=reason), step], now=NOW).pause is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "less than a minute"),
        (61, "about 1 min"),
        (300, "about 5 min"),
        (5399, "about 90 min"),
        (9000, "about 2 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_ordinals() -> None:
    assert list(map(ordinal, (1, 2, 3, 4, 11, 12, 13, 21, 102, 111))) == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
    )


async def test_the_line_is_the_order_in_which_the_trainer_takes_runs(tmp_path: Path) -> None:
    database = await opened(tmp_path / "jobs.db")
    chance = random.Random(7)
    last = {"a": 9.0, "b": 0.0, "c": 5.0}

    def work(db: sa.Connection) -> tuple[list[str], list[str]]:
        for number in range(1, 41):
            made = new_run(number, project=chance.choice("aabc"))
            records.add(db, made, None)
            records.change(
                db, made.id, status=Status.QUEUED, interrupted=chance.random() < 0.2, queued_at=chance.randrange(9),
                served_at=last[made.project],
            )  # fmt: skip
        told = in_turn(records.with_status(db, {Status.QUEUED}), records.last_turns(db, "finetune", "served_at"))
        taken: list[str] = []
        while run := records.take_next(db, "finetune", status=Status.QUEUED, turn="served_at", exclude=()):
            taken.append(run.id)
        return [run.id for run in told], taken

    told, taken = await database.run(work)
    await database.close()
    assert len(taken) == 40
    assert told == taken
