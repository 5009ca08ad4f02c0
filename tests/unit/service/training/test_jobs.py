"""A job's creation: everything that its body names is checked, and its key can do no more than its creator."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest
from safetensors.numpy import save_file

from adapters.store import WEIGHTS_FILE
from service.access.caller import Caller
from service.registry.catalog import AdapterEntry, CatalogSnapshot, Servable, VersionEntry, VersionSettings
from tests.unit.service.files.files_app import LINE, error_of
from tests.unit.service.files.test_holds import push, version
from tests.unit.service.training.training_gateway import BASE, JOB, TrainingGateway

ALL = ("infer", "adapters", "train")
NOBODYS = "file-" + "0" * 24
DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"properties": {"a": DEEP}}


def caller_of(gateway: TrainingGateway, key: str) -> Caller:
    return gateway.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})


async def test_the_trainer_gets_the_body_as_it_was_sent_and_all_that_was_found_out(gateway: TrainingGateway) -> None:
    training, held_out = await gateway.made(LINE * 2, name="Märchen.jsonl"), await gateway.made(LINE)
    body = {
        "model": "voice@1",
        "training_file": training,
        "validation_file": held_out,
        "suffix": "Märchen & Sagen",
        "seed": 7,
        "metadata": {"team": "brand"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "lora_rank": 16}}},
        "integrations": [{"type": "mlflow", "mlflow": {"experiment": "sea", "tags": {"team": "brand"}}}],
    }
    answer = await gateway.create(**body, **{"idempotency-key": "once"})
    assert (answer.status_code, answer.json()) == (200, JOB)
    replay, asked = gateway.trainer.asked
    assert (replay.path, replay.json, replay.headers["idempotency-key"]) == ("/internal/jobs/replay", body, "once")
    assert "x-hatrack-job-key" not in replay.headers
    assert (asked.method, asked.path, asked.json["request"]) == ("POST", "/v1/fine_tuning/jobs", body)
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["idempotency-key"] == "once"
    assert asked.headers["x-hatrack-project"] == "default"
    assert asked.headers["x-hatrack-key-id"] == "admin"
    assert asked.headers["x-request-id"] == answer.headers["x-request-id"]
    assert asked.headers["x-hatrack-trainer-secret"] == "s" * 16
    assert "authorization" not in asked.headers
    shown = (await gateway.http.get(f"/v1/files/{training}")).json()
    assert asked.context["adapter"] == "marchen-sagen"
    assert asked.context["parent"] == "voice@1"
    assert asked.context["training_file"] == {name: shown[name] for name in ("id", "filename", "bytes", "sha256")}
    assert asked.context["validation_file"]["id"] == held_out
    created = (await gateway.http.get("/v1/audit?action=job.create")).json()["data"][0]
    assert (created["target"], created["detail"]["adapter"]) == ("ftjob-1", "marchen-sagen")


async def test_the_trainer_is_told_the_parents_shape(gateway: TrainingGateway) -> None:
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 12,
        "use_rslora": True,
        "target_modules": ["v_proj", "q_proj"],
    }
    draft = replace(version(), config=orjson.dumps(config))
    await push(gateway, "voice", draft)
    training = await gateway.made()
    for model, shape in (
        (
            "voice@1",
            {"rank": 8, "alpha": 12.0, "rslora": True, "target_modules": ["q_proj", "v_proj"], "modules": None},
        ),
        (BASE, None),
    ):
        assert (await gateway.create(model=model, training_file=training)).status_code == 200
        found = gateway.trainer.asked[-1].context["parent_shape"]
        assert (found and found | {"target_modules": sorted(found["target_modules"])}) == shape


def put_weights(gateway: TrainingGateway, digest: str, *modules: str) -> None:
    """An adapter of rank 2 on these modules, where the store has it."""
    directory = gateway.store.root / digest
    directory.mkdir(parents=True)
    tensors = {
        f"base_model.model.{m}.lora_{side}.weight": np.zeros((2, 2), np.float32) for m in modules for side in "AB"
    }
    save_file(tensors, directory / WEIGHTS_FILE)


async def test_expressions_of_a_parents_config_are_told_as_what_its_weights_have(gateway: TrainingGateway) -> None:
    layers = [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    put_weights(gateway, "a" * 64, *layers)
    config = {"r": 2, "lora_alpha": 4, "target_modules": ".*layers.[01].*q_proj", "alpha_pattern": {"k_proj": 9}}
    await push(gateway, "voice", replace(version(), config=orjson.dumps(config)))
    assert (await gateway.create(model="voice@1", training_file=await gateway.made())).status_code == 200
    shape = gateway.trainer.asked[-1].context["parent_shape"]
    assert shape == {"rank": 2, "alpha": 4.0, "rslora": False, "target_modules": ["q_proj"], "modules": 2}


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
async def test_a_parent_whose_modules_differ_is_refused_before_anything_is_made(
    gateway: TrainingGateway, name: str
) -> None:
    put_weights(gateway, "a" * 64, *[f"model.layers.{n}.self_attn.q_proj" for n in (0, 1, 2)])
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], name: {"layers.1.self_attn.q_proj": 8}}
    await push(gateway, "voice", replace(version(), config=orjson.dumps(config)))
    answer = await gateway.create(model="voice@1", training_file=await gateway.made())
    assert (answer.status_code, error_of(answer)["param"]) == (400, "model")
    assert error_of(answer)["code"] == "parent_unsupported"
    assert f"`{name}`" in error_of(answer)["message"]
    assert "q_proj 8" in error_of(answer)["message"]
    assert gateway.trainer.asked == []
    assert await gateway.living_keys() == []


async def test_a_job_s_key_can_do_no_more_than_the_job_needs_and_dies_with_its_creator_s(
    gateway: TrainingGateway,
) -> None:
    limits = {"requests_per_minute": 50}
    creator = await gateway.key(*ALL, project="acme", adapters=["new-*"], stores=["shop-*"], limits=limits)
    training = await gateway.made(key=creator)
    answer = await gateway.create(creator, model=BASE, training_file=training, metadata={"adapter": "new-voice"})
    assert answer.status_code == 200
    (asked,) = gateway.trainer.asked
    job = caller_of(gateway, asked.headers["x-hatrack-job-key"])
    assert job.key_id == asked.headers["x-hatrack-job-key-id"]
    assert job.project == asked.headers["x-hatrack-project"] == "acme"
    assert sorted(job.scopes) == sorted(ALL)
    assert (job.adapters, job.stores, job.background) == (("new-voice",), ("shop-*",), True)
    assert job.limits.requests_per_minute == 50
    shown = (await gateway.http.get(f"/v1/keys/{job.key_id}")).json()
    assert shown["parent_key_id"] == asked.headers["x-hatrack-key-id"]

    second = await gateway.create(asked.headers["x-hatrack-job-key"], model=BASE, training_file=training)
    assert (second.status_code, error_of(second)["code"]) == (403, "job_key")
    await gateway.http.delete(f"/v1/keys/{shown['parent_key_id']}")
    assert job.key_id not in [key["id"] for key in await gateway.living_keys()]


@pytest.mark.parametrize("missing", ALL)
async def test_a_missing_scope_is_named_before_the_body_is_looked_at(gateway: TrainingGateway, missing: str) -> None:
    key = await gateway.key(*(scope for scope in ALL if scope != missing))
    answer = await gateway.create(key, colour="red")
    assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")
    assert f"`{missing}`" in error_of(answer)["message"]
    assert gateway.trainer.asked == []


async def test_there_is_nothing_to_continue_from_without_weights(gateway: TrainingGateway) -> None:
    entry = VersionEntry(1, None, VersionSettings(system_prompt="Hi"), Servable.OK, 1, flow="default/support@1")
    support = AdapterEntry("support", 1, MappingProxyType({1: entry}), MappingProxyType({"live": 1}))
    known = dict(gateway.catalog.snapshot.adapters) | {("default", "support"): support}
    gateway.catalog.replace(CatalogSnapshot(MappingProxyType(known)))
    answer = await gateway.create(model="support@1", training_file=await gateway.made())
    assert (answer.status_code, error_of(answer)["param"]) == (400, "model")
    assert error_of(answer)["code"] == "parent_unsupported"
    assert f"train from a base, `{BASE}`" in error_of(answer)["message"]
    assert gateway.trainer.asked == []
    later = await gateway.create(model=BASE, training_file=await gateway.made(), metadata={"adapter": "support"})
    assert later.status_code == 200


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"model": 3}, 400, "model"),
        ({"training_file": None}, 400, "training_file"),
        ({"colour": "red"}, 400, "colour"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"seed": "7"}, 400, "seed"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata.a"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"integrations": [{"type": "wandb"}]}, 400, "integrations.0"),
        ({"hyperparameters": []}, 400, "hyperparameters"),
        ({"hyperparameters": {"metric": {"name": "json_schema", "schema": DEEP}}}, 400, "hyperparameters.metric"),
        (
            {"method": {"supervised": {"hyperparameters": {"metric": DEEP}}}},
            400,
            "method.supervised.hyperparameters.metric",
        ),
        ({"metadata": {"adapter": "No Name"}}, 400, "metadata.adapter"),
        ({"hyperparameters": {"adapter": 5}}, 400, "hyperparameters.adapter"),
        ({"hyperparameters": {"adapter": BASE}}, 400, "hyperparameters.adapter"),
        ({"metadata": {"adapter": "a"}, "hyperparameters": {"adapter": "b"}}, 400, "metadata.adapter"),
        ({"model": "voice"}, 400, "model"),
        ({"model": "voice:live"}, 400, "model"),
        ({"model": "voice@2"}, 409, "model"),
    ],
)
async def test_a_field_s_value_that_is_not_allowed_is_named(
    gateway: TrainingGateway, changed: dict[str, Any], status: int, param: str
) -> None:
    body = {"model": BASE, "training_file": await gateway.made()} | changed
    answer = await gateway.create(**body)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    assert gateway.trainer.asked == []
    assert await gateway.living_keys() == []


async def test_a_file_for_something_else_is_refused_by_its_field(gateway: TrainingGateway) -> None:
    evals = await gateway.made(b"x", "evals")
    for body, param in (
        ({"training_file": evals}, "training_file"),
        ({"training_file": await gateway.made(), "validation_file": evals}, "validation_file"),
    ):
        answer = await gateway.create(model=BASE, **body)
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)


async def test_what_belongs_to_another_project_is_like_what_does_not_exist(gateway: TrainingGateway) -> None:
    theirs = await gateway.made(key=await gateway.key("train", project="other"))
    narrow = await gateway.key(*ALL, adapters=["v*"])
    ours = await gateway.made(key=narrow)
    pairs = [
        ({"model": BASE, "training_file": theirs}, {"model": BASE, "training_file": NOBODYS}),
        (
            {"model": BASE, "training_file": ours, "validation_file": theirs},
            {"model": BASE, "training_file": ours, "validation_file": NOBODYS},
        ),
        ({"model": "secret@1", "training_file": ours}, {"model": "nobody@1", "training_file": ours}),
        ({"model": "hidden@1", "training_file": ours}, {"model": "nobody@1", "training_file": ours}),
    ]
    for found, never in pairs:
        answers = [await gateway.create(narrow, **body) for body in (found, never)]
        texts = [
            answer.text.replace(theirs, "IT").replace(NOBODYS, "IT").replace(body["model"], "IT")
            for answer, body in zip(answers, (found, never), strict=True)
        ]
        assert texts[0] == texts[1]
        assert [answer.status_code for answer in answers] == [404, 404]
    assert gateway.trainer.asked == []


async def test_a_name_that_the_key_s_globs_do_not_match_is_refused_whether_or_not_it_exists(
    gateway: TrainingGateway,
) -> None:
    narrow = await gateway.key(*ALL, adapters=["v*"])
    ours = await gateway.made(key=narrow)
    texts = []
    for name in ("hidden", "nobody"):
        answer = await gateway.create(narrow, model=BASE, training_file=ours, suffix=name)
        assert (answer.status_code, error_of(answer)["code"]) == (403, "adapter_not_allowed")
        assert error_of(answer)["param"] == "suffix"
        texts.append(answer.text.replace(name, "NAME"))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"metadata": {"adapter": "a"}, "suffix": "b"}, "a"),
        ({"hyperparameters": {"adapter": "a"}, "suffix": "b"}, "a"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"adapter": "a"}}}}, "a"),
        ({"suffix": "Brand Voice!"}, "brand-voice"),
        ({"model": "voice@1"}, "voice"),
    ],
)
async def test_the_adapter_s_name(gateway: TrainingGateway, more: dict[str, Any], name: str) -> None:
    assert (await gateway.create(**{"model": BASE, "training_file": await gateway.made(), **more})).status_code == 200
    (asked,) = gateway.trainer.asked
    assert asked.context["adapter"] == name
    globs = caller_of(gateway, asked.headers["x-hatrack-job-key"]).adapters
    assert globs == tuple(sorted({name, "voice"} if "model" in more else {name}))


async def test_a_job_that_nobody_named_has_a_name_by_its_data(gateway: TrainingGateway) -> None:
    first, second = await gateway.made(), await gateway.made()
    for training in (first, first, second):
        assert (await gateway.create(model=BASE, training_file=training)).status_code == 200
    names = [asked.context["adapter"] for asked in gateway.trainer.asked]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("ft-")
