"""A ladder's creation at the gateway: what its body names is checked, and its key can do no more than its creator."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.access.caller import Scope
from tests.unit.service.files.files_app import bearer, error_of
from tests.unit.service.training.training_gateway import BASE, TrainingGateway

LADDER = {"object": "ladder", "id": "ladder-1", "status": "validating_files"}
STORE = "vs_policies"


@pytest.fixture(autouse=True)
def _answers_with_a_ladder(gateway: TrainingGateway) -> None:
    gateway.trainer.body = dict(LADDER)


async def create(gateway: TrainingGateway, key: str | None = None, **body: Any) -> httpx.Response:
    return await gateway.http.post("/v1/ladders", json=body, headers=bearer(key))


async def test_a_ladder_has_a_key_for_its_adapter_alone(gateway: TrainingGateway) -> None:
    file_id = await gateway.made()
    made = await create(gateway, training_file=file_id, adapter="support", quick=True, instructions=["Be brief."])
    assert (made.status_code, made.json()) == (200, LADDER), made.text
    (asked,) = gateway.trainer.asked
    assert asked.json["request"]["instructions"] == ["Be brief."]
    assert (asked.context["adapter"], asked.context["stores"]) == ("support", [])
    assert asked.context["training_file"]["id"] == file_id
    key = asked.headers["x-hatrack-job-key"]
    caller = gateway.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})
    assert (caller.adapters, caller.background) == (("support",), True)
    assert caller.scopes == {Scope.INFER, Scope.ADAPTERS, Scope.TRAIN, Scope.KNOWLEDGE}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"adapter": "Not A Name"}, 400, "adapter"),
        ({"adapter": BASE}, 400, "adapter"),
        ({"adapter": "support", "target": 2}, 400, "target"),
        ({"adapter": "support", "quick": "yes"}, 400, "quick"),
        ({"adapter": "support", "instructions": ["a"] * 5}, 400, "instructions"),
        ({"adapter": "support", "colour": "red"}, 400, "colour"),
        ({"adapter": "support", "vector_store_ids": ["vs_of_others"]}, 404, "vector_store_ids.0"),
        ({}, 400, "adapter"),
        ({"adapter": "support", "teacher": "voice@1"}, 400, "unlabelled_file"),
        ({"adapter": "support", "unlabelled_file": "file-1"}, 400, "teacher"),
        ({"adapter": "support", "teacher": "voice@1", "unlabelled_file": "file-1", "lora": False}, 400, "teacher"),
        ({"adapter": "support", "teacher": "voice@2", "unlabelled_file": "file-1"}, 409, "teacher"),
        ({"adapter": "support", "teacher": "voice@1", "unlabelled_file": "file-1"}, 404, "unlabelled_file"),
    ],
)
async def test_what_is_wrong_is_named(gateway: TrainingGateway, body: dict[str, Any], status: int, param: str) -> None:
    refused = await create(gateway, training_file=await gateway.made(), **body)
    assert (refused.status_code, error_of(refused)["param"]) == (status, param), refused.text
    assert gateway.trainer.asked == []


async def test_a_store_that_the_caller_may_read_is_passed_on(gateway: TrainingGateway) -> None:
    made = await create(gateway, training_file=await gateway.made(), adapter="support", vector_store_ids=[STORE])
    assert made.status_code == 200, made.text
    assert gateway.trainer.asked[0].context["vector_stores"] == [STORE]


async def test_a_file_of_others_and_an_adapter_out_of_reach_are_refused(gateway: TrainingGateway) -> None:
    missing = await create(gateway, training_file="file-" + "0" * 24, adapter="support")
    assert (missing.status_code, error_of(missing)["param"]) == (404, "training_file")
    key = await gateway.key("infer", "adapters", "train", adapters=["brand-*"])
    refused = await create(gateway, key, training_file=await gateway.made(), adapter="support")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "adapter_not_allowed"), refused.text


async def test_without_the_scope_adapters_there_is_no_ladder(gateway: TrainingGateway) -> None:
    key = await gateway.key("infer", "train")
    refused = await create(gateway, key, training_file=await gateway.made(), adapter="support")
    assert refused.status_code == 403


async def test_a_version_that_teaches_is_pinned_and_the_key_may_ask_it(gateway: TrainingGateway) -> None:
    data, prompts = await gateway.made(), await gateway.made(b'{"prompt": "Where is my parcel?"}\n', "user_data")
    body = {"training_file": data, "adapter": "support", "teacher": "voice", "unlabelled_file": prompts}
    made = await create(gateway, **body)
    assert made.status_code == 200, made.text
    (asked,) = gateway.trainer.asked
    assert asked.context["teacher"] == {"name": "voice@1", "outside": False}
    assert asked.context["unlabelled_file"]["id"] == prompts
    key = asked.headers["x-hatrack-job-key"]
    caller = gateway.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})
    assert sorted(caller.adapters or ()) == ["support", "voice"]


async def test_a_name_of_no_model_may_be_an_outside_teachers_which_the_trainer_knows(gateway: TrainingGateway) -> None:
    body = {"training_file": await gateway.made(), "adapter": "support", "unlabelled_file": await gateway.made()}
    for name in ("large-model", "secret@1"):  # another project's version looks like one that does not exist
        made = await create(gateway, teacher=name, **body)
        assert made.status_code == 200, made.text
        asked = gateway.trainer.asked[-1]
        assert asked.context["teacher"] == {"name": name, "outside": True}
        caller = gateway.keys.authenticator.authenticate(
            {"authorization": f"Bearer {asked.headers['x-hatrack-job-key']}"}
        )
        assert caller.adapters == ("support",)
