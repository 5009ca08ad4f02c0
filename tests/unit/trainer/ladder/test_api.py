"""`POST /v1/ladders` as the gateway reaches it: who may teach, and what it says of its teacher. No worker starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.costs import TokenPrices
from adapters.protocol.reports import ArmMean
from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.conftest import gateway
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import EvaluationGateway
from tests.unit.trainer.evaluate.evaluations.trainer_app import Running, running
from tests.unit.trainer.ladder.rungs_measured import right_at, scored
from tests.unit.trainer.ladder.test_kind import file_ref, run_of
from trainer.evaluate.evaluations.spec import PROVISIONAL, Provisional
from trainer.ladder import spec
from trainer.ladder.spec import Labels, LadderDetails, LadderSpec, Rung, Rungs
from trainer.runs.state import Status
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


async def test_a_ladder_shows_its_store_although_the_rung_was_skipped(trainer: Running) -> None:
    made = (await create(trainer, None)).json()
    assert made["vector_store_id"] is None
    directory = trainer.trainer.ladders.directories.path_of(made["id"])
    (directory / spec.STORE).write_text("vs_examples\n")
    shown = (await trainer.client().http.get(f"/v1/ladders/{made['id']}")).json()
    assert (shown["rungs"], shown["vector_store_id"]) == ([], "vs_examples")


async def test_a_ladder_shows_what_its_rungs_score_so_far(trainer: Running) -> None:
    made = (await create(trainer, None)).json()
    ladders = trainer.trainer.ladders
    details = LadderDetails(adapter="support", purposes={"eval-1": "choose", "eval-2": "prompts"})
    rungs = Rungs(rungs=(Rung(key="base", title="the base", model="tiny"),))
    ladders.directories.write(made["id"], spec.RUNGS, rungs)
    evaluations = trainer.trainer.evaluations.directories
    evaluations.path_of("eval-2").mkdir()
    mean = ArmMean(label="base", mean=0.25, low=0.1, high=0.5, examples=8)
    run = run_of(made["id"], "ladder", Status.RUNNING, details=details.model_dump(mode="json"))

    async def provisional() -> object:
        return (await ladders.show(run, None))["rungs"][0]["provisional"]

    assert await provisional() is None
    evaluations.write("eval-2", PROVISIONAL, Provisional(questions=8, of=20, means=(mean,)))
    assert await provisional() == {"mean": 0.25, "low": 0.1, "high": 0.5, "questions": 8, "of": 20}
    scores = scored({"base": right_at(0.5, 1)})
    ladders.directories.write(made["id"], spec.scores_file("prompts"), scores)
    assert await provisional() is None
    shown = (await trainer.client().http.get(f"/v1/ladders/{made['id']}")).json()
    assert shown["rungs"][0]["provisional"] is None


async def test_a_ladder_without_a_teacher_asks_none(trainer: Running) -> None:
    shown = (await create(trainer, None)).json()
    assert (shown["teacher"], shown["labels"]) == (None, None)
