"""Whether the trainer answers, as `/readyz` and `/metrics` say it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.training.watch import TrainerWatch
from tests.unit.service.training.house import House
from tests.unit.service.training.test_forward import eventually


@pytest.fixture
async def watch(house: House) -> AsyncIterator[TrainerWatch]:
    found = TrainerWatch(house.client, configured=True, every_s=0.05)
    yield found
    await found.stop()


async def test_a_trainer_that_answers_is_up_and_one_that_stops_is_down(house: House, watch: TrainerWatch) -> None:
    assert watch.state == "starting"
    await watch.start()
    await eventually(lambda: watch.state == "up")
    assert house.trainer.asked[0].path == "/health"
    assert house.trainer.asked[0].headers["x-hatrack-trainer-secret"] == "s" * 16
    house.trainer.status = 401  # it knows another secret now
    await eventually(lambda: watch.state == "down")
    house.trainer.status = 200
    await eventually(lambda: watch.state == "up")


async def test_the_trainer_tells_how_long_its_jobs_have_stood_still(house: House, watch: TrainerWatch) -> None:
    await watch.start()
    await eventually(lambda: watch.state == "up")
    assert watch.paused_s is None  # an older trainer does not say it
    house.trainer.body = {"status": "ok", "paused_seconds": 7.5}
    await eventually(lambda: watch.paused_s == 7.5)
    house.trainer.status = 503
    await eventually(lambda: watch.state == "down")
    assert watch.paused_s == 7.5


async def test_one_that_is_not_there_yet_is_starting(house: House, watch: TrainerWatch) -> None:
    house.trainer.status = 503
    await watch.start()
    await eventually(lambda: house.trainer.asked)
    assert watch.state == "starting"
    house.trainer.status = 200
    await eventually(lambda: watch.state == "up")


async def test_none_is_asked_where_there_is_to_be_none(house: House) -> None:
    watch = TrainerWatch(house.client, configured=False)
    await watch.start()
    await watch.stop()
    assert (watch.state, house.trainer.asked) == ("off", [])
