"""`POST /v1/ladders` as the gateway reaches it: who may teach, and what it says of its teacher. No worker starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.costs import TokenPrices
from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.conftest import gateway
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import EvaluationGateway
from tests.unit.trainer.evaluate.evaluations.trainer_app import Running, running
from tests.unit.trainer.ladder.test_kind import file_ref
from trainer.ladder import spec
from trainer.ladder.spec import Labels, LadderSpec
from trainer.runs.supervisor import Supervisor

__all__ = ["gateway"]
ENDPOINTS = """
[endpoints.large]
url = "http://127.0.0.1:9"
model = "large-1"
teacher = true
price_input = 2.0
price_output = 10.0

[endpoints.judging]
url = "http://127.0.0.1:9"
model = "large-1"
"""


@pytest.fixture
async def trainer(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    async def start_nothing(_self: Supervisor) -> None:
        return

    monkeypatch.setattr(Supervisor, "start", start_nothing)
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(ENDPOINTS)
    async with running(tmp_path / "home", base_dir, gateway, endpoints=endpoints) as found:
        yield found


async def create(trainer: Running, teacher: dict[str, Any] | None) -> httpx.Response:
    files = {"training_file": file_ref("data"), "unlabelled_file": file_ref("prompts")}
    names = {} if teacher is None else {"teacher": teacher["name"], "unlabelled_file": "prompts@1"}
    context = {name: file.model_dump() for name, file in files.items()} | {"adapter": "support", "teacher": teacher}
    sent = {"request": {"training_file": "file-data", "adapter": "support", **names}, "context": context}
    headers = {"x-hatrack-job-key": KEY, "x-hatrack-job-key-id": "key_job"}
    return await trainer.client().http.post("/v1/ladders", json=sent, headers=headers)


@pytest.mark.parametrize("name", ["nobody", "judging"])
async def test_a_teacher_that_nobody_offers_is_refused_by_its_field(trainer: Running, name: str) -> None:
    refused = await create(trainer, {"name": name, "outside": True})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (404, "teacher_not_found", "teacher")
    assert name in error["message"]
    assert "(large)" in error["message"]


async def test_a_ladder_knows_its_teachers_prices_and_shows_how_far_it_is(trainer: Running) -> None:
    made = await create(trainer, {"name": "large", "outside": True})
    assert made.status_code == 200, made.text
    shown = made.json()
    assert (shown["teacher"], shown["unlabelled_file"], shown["labels"]) == ("large", "file-prompts", None)
    directories = trainer.trainer.ladders.directories
    stored = directories.read(shown["id"], "spec.json", LadderSpec)
    assert stored is not None
    assert stored.keep_subsets_s == 7 * 86_400
    assert stored.teacher_prices == TokenPrices(input=2.0, output=10.0)
    directories.write(
        shown["id"], spec.LABELS, Labels(teacher="large", outside=True, prompts=50, answered=7, refused=1)
    )
    labels = (await trainer.client().http.get(f"/v1/ladders/{shown['id']}")).json()["labels"]
    assert (labels["prompts"], labels["answered"], labels["refused"], labels["file"]) == (50, 7, 1, None)


async def test_a_ladder_without_a_teacher_asks_none(trainer: Running) -> None:
    shown = (await create(trainer, None)).json()
    assert (shown["teacher"], shown["labels"]) == (None, None)
