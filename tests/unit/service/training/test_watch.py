"""Whether the trainer answers, as `/readyz` and `/metrics` say it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.training.watch import TrainerWatch
from tests.unit.service.training.test_forward import eventually
from tests.unit.service.training.training_gateway import TrainingGateway


@pytest.fixture
async def watch(gateway: TrainingGateway) -> AsyncIterator[TrainerWatch]:
    found = TrainerWatch(gateway.client, configured=True, every_s=0.05)
    yield found
    await found.stop()


async def test_a_trainer_that_answers_is_up_and_one_that_stops_is_down(
    gateway: TrainingGateway, watch: TrainerWatch
) -> None:
    assert watch.state == "starting"
    await watch.start()
    await eventually(lambda: watch.state == "up")
    assert gateway.trainer.asked[0].path == "/health"
    assert gateway.trainer.asked[0].headers["x-hatrack-trainer-secret"] == "s" * 16
    gateway.trainer.status = 401  # it knows another secret now
    await eventually(lambda: watch.state == "down")
    gateway.trainer.status = 200
    await eventually(lambda: watch.state == "up")


async def test_the_trainer_tells_how_long_its_jobs_have_stood_still(
    gateway: TrainingGateway, watch: TrainerWatch
) -> None:
    await watch.start()
    await eventually(lambda: watch.state == "up")
    assert watch.paused_s is None  # an older trainer does not say it
    gateway.trainer.body = {"status": "ok", "paused_seconds": 7.5}
    await eventually(lambda: watch.paused_s == 7.5)
    gateway.trainer.status = 503
    await eventually(lambda: watch.state == "down")
    assert watch.paused_s == 7.5


async def test_the_trainer_tells_what_became_of_its_webhooks_events(
    gateway: TrainingGateway, watch: TrainerWatch
) -> None:
    counts = {"delivered": 2, "failed": 1, "waiting": 0}
    gateway.trainer.body = {"status": "ok", "paused_seconds": 0, "webhook": counts}
    await watch.start()
    await eventually(lambda: watch.webhook == counts)
    gateway.trainer.body = {"status": "ok", "paused_seconds": 0}  # the operator has removed it
    await eventually(lambda: watch.webhook == {})


async def test_one_that_is_not_there_yet_is_starting(gateway: TrainingGateway, watch: TrainerWatch) -> None:
    gateway.trainer.status = 503
    await watch.start()
    await eventually(lambda: gateway.trainer.asked)
    assert watch.state == "starting"
    gateway.trainer.status = 200
    await eventually(lambda: watch.state == "up")


async def test_none_is_asked_where_there_is_to_be_none(gateway: TrainingGateway) -> None:
    watch = TrainerWatch(gateway.client, configured=False)
    await watch.start()
    await watch.stop()
    assert (watch.state, gateway.trainer.asked) == ("off", [])
