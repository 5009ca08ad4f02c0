"""The gateway's part of an estimate: a job's request and files go to the trainer, time comes back and gets a price."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapters.costs import Prices
from adapters.protocol.costs import DEVICE_TIME_PATH, ESTIMATE_PATH, EstimatedJob
from adapters.protocol.runs import CreateJob, FileRef, JobContext
from service.costs.estimate import shown
from service.costs.runs import TrainerCosts
from service.costs.schemas import JobEstimate
from service.errors import BadGateway
from service.training.client import TrainerClient
from service.training.job_schemas import JobPlan, Recipe
from service.training.service import Answer
from tests.unit.service.costs.costs_app import PRICES

TAKEN: dict[str, Any] = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": "auto", "lora_rank": 16}
PLAN: dict[str, Any] = dict.fromkeys(JobPlan.model_fields) | {
    "recipe": Recipe(
        rank=16, alpha=32, rslora=False, dropout=0, target_modules="all-linear", learning_rate=5e-4, scheduler="cosine",
        warmup_ratio=0.1, weight_decay=0, max_grad_norm=1, quantization="none", packing=False,
        gradient_checkpointing=False, epochs=2, batch_size=4, micro_batch_tokens=512, group_by_length=False,
        max_length=1024, seed=0, objective="supervised", beta=0.1, patience=0,
    ).model_dump(),
    "chosen": {"lora_rank": "16: enough to learn a format or style"},
    "trained_with_passages": False,
    "tokens_an_epoch": 2_500,
}  # fmt: skip
ESTIMATED = EstimatedJob(
    examples=90, held_out=10, epochs=2, trained_tokens=5_000, tokens_per_s=100.0, speed_source="record", jobs=3,
    device="cpu", starting_s=4.0, training_s=50.0, judging_s=6.0, hyperparameters=TAKEN, plan=PLAN,
)  # fmt: skip
ENVELOPE = CreateJob(
    request={"model": "tiny", "training_file": "file-1", "suffix": 'a "quoted" näme\r\n--'},
    context=JobContext(
        adapter="voice",
        parent=None,
        parent_shape=None,
        training_file=FileRef(id="file-1", filename="t", bytes=3, sha256="0"),
        validation_file=None,
    ),
)


class SmallTrainer:
    """A trainer on a socket that keeps what it was sent and gives a fixed answer."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.answer: tuple[int, str] = (200, ESTIMATED.model_dump_json())

    async def estimate(self, request: web.Request) -> web.Response:
        async for part in await request.multipart():
            self.parts[str(part.name)] = bytes(await part.read())  # type: ignore[union-attr]
        return web.Response(status=self.answer[0], text=self.answer[1], content_type="application/json")

    async def device_time(self, _: web.Request) -> web.Response:
        return web.Response(status=404, text="{}", content_type="application/json")


@pytest.fixture
async def small() -> SmallTrainer:
    return SmallTrainer()


@pytest.fixture
async def trainer(small: SmallTrainer, tmp_path: Path) -> AsyncIterator[TrainerCosts]:
    app = web.Application(client_max_size=16 * 2**20)
    app.router.add_post(ESTIMATE_PATH, small.estimate)
    app.router.add_get(DEVICE_TIME_PATH, small.device_time)
    runner = web.AppRunner(app)
    await runner.setup()
    socket = str(tmp_path / "t.sock")
    await web.UnixSite(runner, socket).start()
    client = TrainerClient(socket=socket)
    yield TrainerCosts(client)
    await client.close()
    await runner.cleanup()


async def test_the_request_and_its_files_arrive_byte_for_byte(
    small: SmallTrainer, trainer: TrainerCosts, tmp_path: Path
) -> None:
    contents = {"training_file": b"--x\r\n\r\n" * 400_000, "validation_file": b"{}\n"}
    paths = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    assert await trainer.estimate(ENVELOPE, {}, paths) == ESTIMATED
    assert CreateJob.model_validate_json(small.parts.pop("job")) == ENVELOPE
    assert small.parts == contents


async def test_the_trainers_refusal_is_the_clients(small: SmallTrainer, trainer: TrainerCosts) -> None:
    small.answer = (400, '{"error": {}}')
    refused = await trainer.estimate(ENVELOPE, {}, {})
    assert isinstance(refused, Answer)
    assert (refused.status, refused.body) == (400, b'{"error": {}}')


async def test_a_trainer_of_an_earlier_release_is_named_as_such(trainer: TrainerCosts) -> None:
    with pytest.raises(BadGateway, match="is it of this release"):
        await trainer.device_times(0, 1)


def test_time_gets_a_price() -> None:
    told = shown(ESTIMATED, "voice", PRICES)
    JobEstimate.model_validate(told)
    assert (told["hyperparameters"], told["plan"]) == (TAKEN, PLAN)
    assert told["seconds"] == {"starting": 4, "training": 50, "judging": 6, "total": 60}
    assert told["money"] == {"starting": 4, "training": 50, "judging": 6, "total": 60}


@pytest.mark.parametrize(("prices", "money"), [(PRICES, True), (Prices(), False)])
def test_a_judging_that_nothing_tells_leaves_the_sum_open(prices: Prices, money: bool) -> None:
    told: dict[str, Any] = shown(ESTIMATED.model_copy(update={"judging_s": None}), "voice", prices)
    JobEstimate.model_validate(told)
    assert (told["seconds"]["judging"], told["seconds"]["total"]) == (None, None)
    assert (told["money"] is not None) == money
    if money:
        assert (told["money"]["training"], told["money"]["total"]) == (50, None)
