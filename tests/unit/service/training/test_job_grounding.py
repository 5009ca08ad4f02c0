"""A job's grounding and sampling defaults: what a version's settings may hold; its stores are the caller's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.protocol.costs import ESTIMATE_PATH
from service.access.tables import keys
from tests.unit.service.files.files_app import error_of
from tests.unit.service.training.training_gateway import TrainingGateway

SHOP = {"vector_store_ids": ["vs_policies"], "max_num_results": 2}


async def body(gateway: TrainingGateway, **more: Any) -> dict[str, Any]:
    return {"model": "voice@1", "training_file": await gateway.made(), **more}


@pytest.mark.parametrize(
    "given",
    [
        {"hyperparameters": {"grounding": SHOP}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"grounding": SHOP}}}},
        {"metadata": {"grounding": json.dumps(SHOP)}},
        {"metadata": {"grounding": json.dumps(SHOP)}, "hyperparameters": {"grounding": SHOP}},
    ],
)
async def test_it_reaches_the_trainer_as_it_was_sent(gateway: TrainingGateway, given: dict[str, Any]) -> None:
    answer = await gateway.create(**await body(gateway, **given))
    assert answer.status_code == 200
    assert {name: gateway.trainer.asked[-1].json["request"][name] for name in given} == given


async def test_the_stores_are_recorded_with_the_job_and_its_key(gateway: TrainingGateway) -> None:
    answer = await gateway.create(**await body(gateway, hyperparameters={"grounding": SHOP}))
    assert answer.status_code == 200
    assert gateway.trainer.asked[-1].context["stores"] == [["vs_policies"]]
    recorded = await gateway.database.run(lambda db: db.scalars(sa.select(keys.c.run_stores)).all())
    assert [["vs_policies"]] in recorded


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"vector_store_ids": ["vs_others"]}, 404, "hyperparameters.grounding.vector_store_ids"),
        ({"vector_store_ids": ["vs_policies"], "colour": 1}, 400, "hyperparameters.grounding.colour"),
        ({"max_num_results": 0}, 400, "hyperparameters.grounding.max_num_results"),
        ({"filters": {"type": "like"}}, 400, "hyperparameters.grounding.filters.type"),
        ("shop", 400, "hyperparameters.grounding"),
        (["vs_policies"], 400, "hyperparameters.grounding"),
    ],
)
async def test_what_a_version_could_not_be_served_with_is_refused_by_name(
    gateway: TrainingGateway, given: Any, status: int, param: str
) -> None:
    answer = await gateway.create(**await body(gateway, hyperparameters={"grounding": given}))
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    assert not gateway.trainer.asked


async def test_two_different_ones_are_refused(gateway: TrainingGateway) -> None:
    metadata = {"grounding": json.dumps(SHOP | {"max_num_results": 3})}
    given = await body(gateway, metadata=metadata, hyperparameters={"grounding": SHOP})
    answer = await gateway.create(**given)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "hyperparameters.grounding")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"hyperparameters": {"grounding": SHOP}}, "hyperparameters.grounding"),
        ({"metadata": {"grounding": json.dumps(SHOP)}}, "metadata.grounding"),
        ({"model": "shop@1"}, "model"),
    ],
)
async def test_the_time_of_prompts_with_passages_is_not_guessed(
    gateway: TrainingGateway, given: dict[str, Any], param: str
) -> None:
    answer = await gateway.http.post("/v1/fine_tuning/jobs/estimate", json=await body(gateway, **given))
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "estimate_unsupported")
    assert not gateway.trainer.asked


@pytest.mark.parametrize("given", [{}, {"model": "shop@1", "hyperparameters": {"grounding": {}}}])
async def test_without_passages_the_trainer_is_asked(gateway: TrainingGateway, given: dict[str, Any]) -> None:
    gateway.trainer.status, gateway.trainer.body = 400, {"error": {"message": "too few"}}
    answer = await gateway.http.post("/v1/fine_tuning/jobs/estimate", json=await body(gateway, **given))
    assert (answer.status_code, answer.json()) == (400, {"error": {"message": "too few"}})
    assert gateway.trainer.asked[-1].path == ESTIMATE_PATH


async def test_sampling_defaults_reach_the_trainer_as_they_were_sent(gateway: TrainingGateway) -> None:
    given = {"sampling": {"temperature": 0.2, "stop": ["END"]}}
    answer = await gateway.create(**await body(gateway, hyperparameters=given))
    assert answer.status_code == 200
    assert gateway.trainer.asked[-1].json["request"]["hyperparameters"] == given


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": 9}, "hyperparameters.sampling.temperature"),
        ({"temperatur": 1}, "hyperparameters.sampling.temperatur"),
        ({"stop": [""]}, "hyperparameters.sampling.stop"),
        (0.2, "hyperparameters.sampling"),
    ],
)
async def test_a_sampling_default_that_a_version_cannot_have_is_refused_by_name(
    gateway: TrainingGateway, given: Any, param: str
) -> None:
    answer = await gateway.create(**await body(gateway, hyperparameters={"sampling": given}))
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert not gateway.trainer.asked
