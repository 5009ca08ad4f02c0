"""What a job's creation understands, and what it refuses with the field's name."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.protocol.runs import CreateJob
from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import Client, context, running
from tests.unit.trainer.through_gateway import CONTEXT_HEADER
from trainer.config import Settings
from trainer.errors import RequestError
from trainer.finetune.options import evaluation_options
from trainer.finetune.schemas import read_body
from trainer.tune.hyperparameters import HyperparameterRequest
from trainer.validation import validated

LEAST = {"model": "tiny", "training_file": "train"}


def hyper(**values: Any) -> dict[str, Any]:
    return {"hyperparameters": values}


def supervised(**values: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": values}}}


def test_all_that_can_be_asked_for_is_understood_wherever_it_stands() -> None:
    values: dict[str, Any] = {
        "n_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"], "rslora": True, "quantization": "none", "max_length": 128,
        "packing": True, "warmup_ratio": 0.2, "adapter": "voice", "system_prompt": "Be salty.", "strict": True,
        "drop_long": True, "held_out_share": 0.25,
    }  # fmt: skip
    expected = HyperparameterRequest(
        n_epochs=2, batch_size=4, learning_rate=1e-3, lora_rank=8, lora_alpha=16, lora_dropout=0.1,
        target_modules=("q_proj", "v_proj"), rslora=True, quantization="none", max_length=128, packing=True,
        warmup_ratio=0.2,
    )  # fmt: skip
    texts = {
        name: ",".join(value) if isinstance(value, list) else str(value)
        for name, value in values.items()
        if name not in ("n_epochs", "batch_size")
    }
    openais = {"n_epochs": 2, "batch_size": 4}
    for body in (hyper(**values), supervised(**values), {"metadata": texts} | hyper(**openais)):
        asked = read_body(LEAST | body)
        assert asked.hyperparameters == expected
        assert asked.options.model_dump(exclude_unset=True) == {
            "adapter": "voice", "system_prompt": "Be salty.", "strict": True, "drop_long": True,
            "held_out_share": 0.25,
        }  # fmt: skip
    assert asked.place("lora_rank") == "metadata.lora_rank"
    assert asked.place("max_rank") == "hyperparameters.max_rank"


DEEP: dict[str, Any] = {}
for _ in range(600):
    DEEP = {"properties": {"a": DEEP}}


def test_modules_are_trained_once_each_however_often_they_are_named() -> None:
    for body in (hyper(target_modules=["q_proj", "q_proj"]), {"metadata": {"target_modules": "q_proj,q_proj"}}):
        assert read_body(LEAST | body).hyperparameters.target_modules == ("q_proj",)


def test_a_schema_whose_check_goes_too_deep_is_refused_by_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("trainer.finetune.options.read_metric", deep)
    with pytest.raises(RequestError) as refused:
        evaluation_options(read_body(LEAST | hyper(metric="rouge_l")), Settings())
    assert refused.value.param == "hyperparameters.metric"


def test_auto_is_the_usual_value_of_what_no_data_decide() -> None:
    fields = ("lora_dropout", "target_modules", "rslora", "packing", "warmup_ratio")
    for body in (hyper(**dict.fromkeys(fields, "auto")), {"metadata": dict.fromkeys(fields, "auto")}):
        assert read_body(LEAST | body).hyperparameters == HyperparameterRequest()


def test_what_is_left_open_is_auto_and_other_metadata_is_the_clients_own() -> None:
    asked = read_body(LEAST | {"metadata": {"team": "sea", "n_epochs": "many", "use_dora": "false"}} | supervised())
    assert asked.hyperparameters == HyperparameterRequest()
    assert read_body(LEAST | hyper(n_epochs="auto", batch_size="auto")).hyperparameters == HyperparameterRequest()
    assert read_body(LEAST | {"metadata": {"target_modules": '["q_proj"]'}}).hyperparameters.target_modules == (
        "q_proj",
    )
    assert (
        read_body(LEAST | {"metadata": {"target_modules": "all-linear"}}).hyperparameters.target_modules == "all-linear"
    )
    assert read_body(LEAST | {"metadata": {"system_prompt": "16"}}).options.system_prompt == "16"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"training_file": 3}, "training_file", "invalid_value"),
        ({"n_epochs": 3}, "n_epochs", "unknown_parameter"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**32}, "seed", "invalid_value"),
        ({"suffix": "s" * 65}, "suffix", "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64, "invalid_value"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "invalid_value"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0", "invalid_value"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type", "unsupported_value"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "unsupported_value"),
        ({"hyperparameters": {"beta": 0.2}}, "hyperparameters.beta", "invalid_value"),
        ({"hyperparameters": {"drop_long": True, "overflow": "truncate"}}, "hyperparameters.overflow", "invalid_value"),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_value"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "unsupported_value"),
        ({"method": {"type": "supervised", "extra": 1}}, "method.extra", "unknown_parameter"),
        ({"method": {}}, "method.type", "invalid_value"),
        (hyper(n_epochs=0), "hyperparameters.n_epochs", "invalid_value"),
        (hyper(n_epochs="many"), "hyperparameters.n_epochs", "invalid_value"),
        (hyper(lora_rank=True), "hyperparameters.lora_rank", "invalid_value"),
        (hyper(learning_rate=2), "hyperparameters.learning_rate", "invalid_value"),
        (hyper(quantization="int8"), "hyperparameters.quantization", "invalid_value"),
        (hyper(betta=0.1), "hyperparameters.betta", "unknown_parameter"),
        (hyper(use_dora=True), "hyperparameters.use_dora", "unsupported_value"),
        (hyper(modules_to_save=["lm_head"]), "hyperparameters.modules_to_save", "unsupported_value"),
        (hyper(init_lora_weights="pissa"), "hyperparameters.init_lora_weights", "unsupported_value"),
        (hyper(bias="all"), "hyperparameters.bias", "unsupported_value"),
        (hyper(use_dora=False), "hyperparameters.use_dora", "unknown_parameter"),
        (hyper(lora_rank=8) | {"metadata": {"lora_rank": "16"}}, "metadata.lora_rank", "invalid_value"),
        (supervised(lora_rank=0), "method.supervised.hyperparameters.lora_rank", "invalid_value"),
        (supervised(nothing=1), "method.supervised.hyperparameters.nothing", "unknown_parameter"),
        ({"metadata": {"lora_rank": "many"}}, "metadata.lora_rank", "invalid_value"),
        ({"metadata": {"use_dora": "true"}}, "metadata.use_dora", "unsupported_value"),
        ({"metadata": {"strict": "perhaps"}}, "metadata.strict", "invalid_value"),
        (hyper(target_modules="[" * 100_000), "hyperparameters.target_modules", "invalid_value"),
        (hyper(metric={"name": "json_schema", "schema": DEEP}), "hyperparameters.metric", "invalid_value"),
        (
            supervised(metric={"name": "json_schema", "schema": DEEP}),
            "method.supervised.hyperparameters.metric",
            "invalid_value",
        ),
        ({"model": DEEP}, "model", "invalid_value"),
        (hyper(held_out_share=0.6), "hyperparameters.held_out_share", "invalid_value"),
        (hyper(held_out_share=True), "hyperparameters.held_out_share", "invalid_value"),
        (
            {"validation_file": "file-1", "metadata": {"held_out_share": "0.2"}},
            "metadata.held_out_share",
            "invalid_value",
        ),
        (hyper(system_prompt="p" * 32_769), "hyperparameters.system_prompt", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_body(LEAST | body)
    assert (refused.value.param, refused.value.shown_code, refused.value.status) == (param, code, 400)
    assert param in refused.value.message


@pytest.mark.parametrize("body", [None, [], "job", {}, {"model": "tiny"}])
def test_what_is_no_body_is_refused(body: object) -> None:
    with pytest.raises(RequestError):
        read_body(body)


def test_a_context_that_no_gateway_sends_is_refused() -> None:
    told = json.loads(base64.urlsafe_b64decode(context("märchen", parent="voice@3")))
    sent = validated(CreateJob, {"request": {}, "context": told})
    assert (sent.context.adapter, sent.context.parent) == ("märchen", "voice@3")
    for wrong in ("", {}, {"request": {}}, {"request": {}, "context": told | {"more": 1}}):
        with pytest.raises(RequestError):
            validated(CreateJob, wrong)


@pytest.fixture
async def client(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Client]:
    async with running(tmp_path, base_dir, gateway) as trainer:
        yield trainer.client()


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (hyper(lora_rank=17), "hyperparameters.lora_rank", "engine serves 16"),
        ({"metadata": {"lora_rank": "32"}}, "metadata.lora_rank", "engine serves 16"),
        (supervised(max_length=4096), "method.supervised.hyperparameters.max_length", "256 at most"),
        (hyper(target_modules=["q_proj", "query"]), "hyperparameters.target_modules", "'query'"),
        (hyper(target_modules=["lm_head"]), "hyperparameters.target_modules", "down_proj"),
        (hyper(target_modules=["proj"]), "hyperparameters.target_modules", "'proj'"),
        (hyper(target_modules=[]), "hyperparameters.target_modules", "is empty"),
        (
            hyper(learning_rate=1e-3, learning_rate_multiplier=2),
            "hyperparameters.learning_rate_multiplier",
            "learning_rate",
        ),
        (hyper(learning_rate_multiplier=1e-322), "hyperparameters.learning_rate_multiplier", "too small"),
    ],
)
async def test_what_the_engine_could_not_serve_is_refused_at_creation(
    client: Client, body: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.create(**body)
    assert refused.value.param == param
    assert words in refused.value.message
    assert (await client.openai.fine_tuning.jobs.list()).data == []


async def test_modules_are_named_as_peft_matches_them(client: Client) -> None:
    for modules in (["q_proj", "q_proj"], ["mlp.up_proj"], ["model.layers.0.self_attn.k_proj"]):
        await client.create(hyperparameters={"target_modules": modules})


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (supervised(lora_rank=16), "method.supervised.hyperparameters.lora_rank"),
        ({"metadata": {"lora_alpha": "8"}}, "metadata.lora_alpha"),
        (hyper(target_modules=["q_proj"]), "hyperparameters.target_modules"),
        (hyper(rslora=True), "hyperparameters.rslora"),
    ],
)
async def test_a_shape_that_is_not_the_parents_is_refused_at_creation(
    client: Client, asked: dict[str, Any], param: str
) -> None:
    shape = {"rank": 8, "alpha": 16.0, "rslora": False, "target_modules": ["v_proj", "q_proj"]}
    from_parent = {CONTEXT_HEADER: context(parent="voice@3", parent_shape=shape)}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.create(**asked, headers=from_parent)
    assert refused.value.param == param
    assert "parent" in refused.value.message
    same = hyper(lora_rank=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    assert (await client.create(**same, headers=from_parent)).status == "validating_files"


async def test_a_parent_that_leaves_out_layers_is_refused_at_creation_by_model(client: Client) -> None:
    shape = {"rank": 8, "alpha": 16.0, "rslora": False, "target_modules": ["v_proj", "q_proj"], "modules": 3}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.create(headers={CONTEXT_HEADER: context(parent="voice@3", parent_shape=shape)})
    assert (refused.value.param, refused.value.code) == ("model", "parent_unsupported")
    assert "adapts 3 of the base's 4 layers named v_proj, q_proj" in refused.value.message
    whole = {CONTEXT_HEADER: context(parent="voice@3", parent_shape=shape | {"modules": 4})}
    assert (await client.create(headers=whole)).status == "validating_files"
