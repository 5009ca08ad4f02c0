"""An evaluation's creation at the gateway: everything that its body names is checked, its key can do no more than its
creator, and what was resolved goes to the trainer beside the body."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.access.audit import SYSTEM_ID, Actor
from service.access.caller import Caller, Scope
from service.files.holds import hold_for_version
from service.registry import tables
from service.registry.catalog import AdapterEntry, CatalogSnapshot, Servable, VersionEntry, VersionSettings
from service.registry.split import Split
from service.training.evaluations import EvaluationService
from service.training.revalidation import system_caller
from tests.unit.service.files.files_app import LINE, bearer, error_of
from tests.unit.service.training.training_gateway import BASE, TrainingGateway

ALL = ("infer", "adapters", "train")
EVALUATION = {"object": "evaluation", "id": "eval-1", "status": "queued"}
NOBODYS = "file-" + "0" * 24
SALTY = VersionSettings(system_prompt="Be salty.")


@pytest.fixture(autouse=True)
def _stocked(gateway: TrainingGateway) -> None:
    """`voice@1` is live, `voice@3` has a system prompt, `voice:both` is split, `voice@2` is damaged."""
    gateway.trainer.body = dict(EVALUATION)
    versions = {
        1: VersionEntry(1, "a" * 64, VersionSettings(), Servable.OK, 1),
        2: VersionEntry(2, "b" * 64, VersionSettings(), Servable.DAMAGED, 2),
        3: VersionEntry(3, "c" * 64, SALTY, Servable.OK, 3),
    }
    aliases = {"live": 1, "next": 3, "both": Split.of({1: 1, 3: 9})}
    voice = AdapterEntry("voice", 1, MappingProxyType(versions), MappingProxyType(aliases))
    known = dict(gateway.catalog.snapshot.adapters) | {("default", "voice"): voice}
    gateway.catalog.replace(CatalogSnapshot(MappingProxyType(known)))


async def create(gateway: TrainingGateway, key: str | None = None, **body: Any) -> httpx.Response:
    return await gateway.http.post("/v1/evaluations", json=body, headers=bearer(key))


def sent(gateway: TrainingGateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """The client's body and the gateway's word, as the trainer got them."""
    (asked,) = gateway.trainer.asked
    assert (asked.method, asked.path) == ("POST", "/v1/evaluations")
    return asked.json["request"], asked.json["context"]


def caller_of(gateway: TrainingGateway) -> Caller:
    key = gateway.trainer.asked[0].headers["x-hatrack-job-key"]
    return gateway.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})


async def test_the_trainer_gets_the_body_and_all_that_was_found_out(gateway: TrainingGateway) -> None:
    held_out = await gateway.made(LINE, "evals", name="held.jsonl")
    body = {"model": "voice:next", "held_out": held_out, "metric": "rouge_l", "suites": [], "metadata": {"a": "b"}}
    answer = await create(gateway, **body)
    assert (answer.status_code, answer.json()) == (200, EVALUATION)
    request, context = sent(gateway)
    assert request == body
    shown = (await gateway.http.get(f"/v1/files/{held_out}")).json()
    assert context["grounding"] is None
    assert context["held_out"] == {name: shown[name] for name in ("id", "filename", "bytes", "sha256")}
    assert (context["candidate"], context["live"], context["records"]) == ("voice@3", "voice@1", True)
    assert context["system_prompt"] == "Be salty."
    created = (await gateway.http.get("/v1/audit?action=evaluation.create")).json()["data"][0]
    assert created["target"] == "eval-1"
    assert created["detail"]["held_out"] == held_out


async def test_the_stores_that_its_arms_are_grounded_in_go_to_the_trainer(gateway: TrainingGateway) -> None:
    held_out = await gateway.made(LINE, "evals", name="held.jsonl")
    arms = [
        {"label": "a", "model": BASE, "grounding": {"vector_store_ids": ["vs_b", "vs_a"]}},
        {"label": "b", "model": BASE, "grounding": {"provider": "webhook"}},
        {"label": "c", "model": BASE},
    ]
    assert (await create(gateway, arms=arms, held_out=held_out)).status_code == 200
    assert sent(gateway)[1]["stores"] == [["vs_a"], ["vs_b"], ["webhook"]]


async def test_the_key_can_do_no_more_than_the_evaluation_needs(gateway: TrainingGateway) -> None:
    held_out = await gateway.made()
    assert (await create(gateway, model="voice", held_out=held_out)).status_code == 200
    job = caller_of(gateway)
    assert sorted(job.scopes) == sorted(ALL)
    assert (job.adapters, job.background, job.project) == (("voice",), True, "default")
    second = await create(
        gateway, gateway.trainer.asked[0].headers["x-hatrack-job-key"], model="voice", held_out=held_out
    )
    assert (second.status_code, error_of(second)["code"]) == (403, "job_key")


async def test_the_key_holds_what_is_held_out_as_long_as_it_lives(gateway: TrainingGateway) -> None:
    held_out = await gateway.made()
    await create(gateway, model="voice", held_out=held_out)
    await gateway.http.delete(f"/v1/files/{held_out}")
    key = gateway.trainer.asked[0].headers["x-hatrack-job-key"]
    content = await gateway.http.get(f"/v1/files/{held_out}/content", headers=bearer(key))
    assert content.status_code == 200


async def test_without_the_scope_for_adapters_nothing_is_recorded_or_promoted(gateway: TrainingGateway) -> None:
    key = await gateway.key("infer", "train")
    held_out = await gateway.made(key=key)
    refused = await create(gateway, key, model="voice@3", held_out=held_out, promote="auto")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
    assert (await create(gateway, key, model="voice@3", held_out=held_out)).status_code == 200
    assert sent(gateway)[1]["records"] is False
    assert Scope.ADAPTERS not in caller_of(gateway).scopes


@pytest.mark.parametrize("missing", ["infer", "train"])
async def test_a_missing_scope_is_named_before_the_body_is_looked_at(gateway: TrainingGateway, missing: str) -> None:
    key = await gateway.key(*(scope for scope in ALL if scope != missing))
    answer = await create(gateway, key, colour="red")
    assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")


async def test_arms_are_resolved_and_endpoints_left_to_the_trainer(gateway: TrainingGateway) -> None:
    arms = [
        {"label": "old", "model": "voice"},
        {"label": "new", "model": "voice:next", "prompt": {}},
        {"label": "base", "model": BASE, "prompt": {"system": "Be kind."}},
        {"label": "theirs", "model": "secret@9", "endpoint": "elsewhere"},
    ]
    body = {"arms": arms, "candidate": "new", "bases": ["base"], "held_out": await gateway.made()}
    assert (await create(gateway, **body, promote="auto")).status_code == 200
    request, context = sent(gateway)
    assert request == body | {"promote": "auto"}
    assert context["models"] == {"old": "voice@1", "new": "voice@3", "base": BASE}
    assert (context["candidate"], context["live"]) == ("voice@3", "voice@1")


async def test_an_arm_that_is_not_the_version_as_it_serves_is_no_candidate_for_live(gateway: TrainingGateway) -> None:
    held_out = await gateway.made()
    for more in ({"prompt": {"system": "Be kind."}}, {"grounding": True}, {"endpoint": "elsewhere"}):
        arms = [{"label": "new", "model": "voice@3", **more}, {"label": "base", "model": BASE}]
        body = {"arms": arms, "candidate": "new", "bases": ["base"], "held_out": held_out}
        answer = await create(gateway, **body, promote="auto")
        assert (answer.status_code, error_of(answer)["param"]) == (400, "promote")
        assert (await create(gateway, **body)).status_code == 200
        assert gateway.trainer.asked[-1].json["context"]["candidate"] is None


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"model": 3}, 400, "model"),
        ({"model": None}, 400, "model"),
        ({"model": BASE}, 400, "model"),
        ({"model": "voice:both"}, 400, "model"),
        ({"model": "voice@2"}, 409, "model"),
        ({"model": "voice@9"}, 404, "model"),
        ({"arms": [{"label": "a", "model": "voice"}]}, 400, "arms"),
        ({"model": None, "arms": []}, 400, "arms"),
        ({"model": None, "arms": [{"label": "a", "model": "voice@2"}]}, 409, "arms.0.model"),
        ({"model": None, "arms": [{"label": "a", "model": "nobody"}]}, 404, "arms.0.model"),
        ({"model": None, "arms": [{"label": "a", "model": BASE, "url": "http://x"}]}, 400, "arms.0.url"),
        ({"held_out": None}, 400, "held_out"),
        ({"promote": "always"}, 400, "promote"),
        ({"kind": "evaluation"}, 400, "kind"),
        ({"colour": "red"}, 400, "colour"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
    ],
)
async def test_a_field_s_value_that_is_not_allowed_is_named(
    gateway: TrainingGateway, changed: dict[str, Any], status: int, param: str
) -> None:
    answer = await create(gateway, **{"model": "voice", "held_out": await gateway.made()} | changed)
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    assert gateway.trainer.asked == []
    assert await gateway.living_keys() == []


async def test_no_client_makes_its_evaluation_a_revalidation(gateway: TrainingGateway) -> None:
    """One of these is spared the base at its best."""
    answer = await create(gateway, model="voice", held_out=await gateway.made(), kind="revalidation")
    other = await create(gateway, model="voice", held_out=await gateway.made(), colour="red")
    assert error_of(answer)["code"] == error_of(other)["code"] == "unknown_parameter"
    assert gateway.trainer.asked == []


async def test_what_belongs_to_another_project_is_like_what_does_not_exist(gateway: TrainingGateway) -> None:
    theirs = await gateway.made(key=await gateway.key("train", project="other"))
    narrow = await gateway.key(*ALL, adapters=["v*"])
    ours = await gateway.made(key=narrow)

    def arms(model: str) -> list[dict[str, str]]:
        return [{"label": "a", "model": model}]

    pairs = [
        ({"model": "voice", "held_out": theirs}, {"model": "voice", "held_out": NOBODYS}),
        ({"model": "secret@1", "held_out": ours}, {"model": "nobody@1", "held_out": ours}),
        ({"model": "hidden", "held_out": ours}, {"model": "nobody", "held_out": ours}),
        ({"arms": arms("hidden@1"), "held_out": ours}, {"arms": arms("nobody@1"), "held_out": ours}),
    ]
    for found, never in pairs:
        answers = [await create(gateway, narrow, **body) for body in (found, never)]
        texts = [answer.text for answer in answers]
        for name in (theirs, NOBODYS, "secret", "hidden", "nobody"):
            texts = [text.replace(name, "IT") for text in texts]
        assert texts[0] == texts[1]
        assert [answer.status_code for answer in answers] == [404, 404]
    assert gateway.trainer.asked == []


async def test_no_key_is_left_where_the_trainer_refuses_or_knows_it_already(gateway: TrainingGateway) -> None:
    held_out = await gateway.made()
    gateway.trainer.status, gateway.trainer.body = 400, {"error": {"message": "no", "param": "metric", "code": "x"}}
    assert (await create(gateway, model="voice", held_out=held_out)).status_code == 400
    gateway.trainer.status, gateway.trainer.headers = 200, {"x-hatrack-replayed": "true"}
    assert (await create(gateway, model="voice", held_out=held_out)).status_code == 200
    assert await gateway.living_keys() == []


async def test_the_gateway_itself_judges_again_on_what_only_the_version_holds(gateway: TrainingGateway) -> None:
    held_out = await gateway.made()
    lineage = {"lineage": {"files": [held_out]}}
    await gateway.database.run(lambda db: hold_for_version(db, "default", "voice@3", lineage))
    await gateway.http.delete(f"/v1/files/{held_out}")
    assert (await create(gateway, model="voice@3", held_out=held_out)).status_code == 404
    evaluations = EvaluationService(gateway.training, gateway.files, gateway.catalog, gateway.database)
    headers = {"x-hatrack-project": "default", "x-hatrack-key-id": SYSTEM_ID}
    body = {"model": "voice@3", "held_out": held_out}
    answer = await evaluations.create(
        system_caller("default"), body, headers, actor=Actor(SYSTEM_ID, "default"), version="voice@3"
    )
    assert (answer.status, json.loads(answer.body)) == (200, EVALUATION)
    assert sent(gateway)[0] == body | {"kind": "revalidation"}
    assert caller_of(gateway).background


async def test_a_page_keeps_the_headers_that_hold_it_in(gateway: TrainingGateway) -> None:
    gateway.trainer.headers = {"content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}
    answer = await gateway.http.get("/v1/evaluations/eval-1/report.html")
    assert gateway.trainer.asked[0].path == "/v1/evaluations/eval-1/report.html"
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_cancellation_stands_in_the_audit(gateway: TrainingGateway) -> None:
    assert (await gateway.http.post("/v1/evaluations/eval-1/cancel")).status_code == 200
    (noted,) = (await gateway.http.get("/v1/audit?action=evaluation.cancel")).json()["data"]
    assert noted["target"] == "eval-1"


async def test_the_trainer_learns_what_the_version_was_trained_on_though_it_is_off_the_list(
    gateway: TrainingGateway,
) -> None:
    training, held_out = await gateway.made(name="train.jsonl"), await gateway.made()
    lineage = {"files": [training], "recipe": {"rank": 4}}

    def train(db: sa.Connection) -> None:
        made = {"project": "default", "name": "voice", "next_version": 4, "created_at": 1}
        adapter = db.execute(tables.adapters.insert().values(made)).inserted_primary_key
        assert adapter is not None
        row = {
            "adapter_id": adapter[0], "number": 3, "digest": "c" * 64, "state": "ready", "settings": {}, "rank": 4,
            "metadata": {"lineage": lineage}, "alpha": 8.0, "target_modules": [], "bytes": 1, "zero_effect": False,
            "base": {}, "config": b"", "warnings": [], "created_at": 1,
        }  # fmt: skip
        db.execute(tables.versions.insert().values(row))
        hold_for_version(db, "default", "voice@3", {"lineage": lineage})

    await gateway.database.run(train)
    await gateway.http.delete(f"/v1/files/{training}")
    assert (await create(gateway, model="voice@3", held_out=held_out)).status_code == 200
    context = sent(gateway)[1]
    assert [file["filename"] for file in context["training_files"]] == ["train.jsonl"]
    assert context["lineage"] == lineage
    key = gateway.trainer.asked[0].headers["x-hatrack-job-key"]
    content = await gateway.http.get(f"/v1/files/{training}/content", headers=bearer(key))
    assert content.status_code == 200


async def test_the_trainer_learns_what_the_version_is_grounded_in(gateway: TrainingGateway) -> None:
    grounded = VersionSettings.model_validate({"grounding": {"vector_store_ids": ["vs_1"], "timeout_s": 2}})
    versions = {4: VersionEntry(4, "d" * 64, grounded, Servable.OK, 4)}
    shop = AdapterEntry("shop", 1, MappingProxyType(versions), MappingProxyType({"live": 4}))
    known = dict(gateway.catalog.snapshot.adapters) | {("default", "shop"): shop}
    gateway.catalog.replace(CatalogSnapshot(MappingProxyType(known)))
    assert (await create(gateway, model="shop", held_out=await gateway.made())).status_code == 200
    grounding = sent(gateway)[1]["grounding"]
    assert (grounding["vector_store_ids"], grounding["timeout_s"]) == (["vs_1"], 2)
    assert sent(gateway)[1]["groundings"] == {"shop@4": grounding}
    gateway.trainer.asked.clear()
    arms = [{"label": name, "model": name} for name in ("shop", "voice@3")]
    assert (await create(gateway, arms=arms, held_out=await gateway.made())).status_code == 200
    assert sent(gateway)[1]["groundings"] == {"shop@4": grounding}


async def test_the_trainer_learns_that_a_version_is_made_of_settings_alone(gateway: TrainingGateway) -> None:
    shown = [{"user": "Do you ship abroad?", "assistant": "Aye."}]
    settings = VersionSettings.model_validate({"system_prompt": "Be salty.", "examples": shown})
    versions = {
        1: VersionEntry(1, None, settings, Servable.OK, 1, flow="default/shop@1"),
        2: VersionEntry(2, "d" * 64, VersionSettings(), Servable.OK, 2),
    }
    shop = AdapterEntry("shop", 1, MappingProxyType(versions), MappingProxyType({"live": 1}))
    known = dict(gateway.catalog.snapshot.adapters) | {("default", "shop"): shop}
    gateway.catalog.replace(CatalogSnapshot(MappingProxyType(known)))
    held_out = await gateway.made()
    for model, has_weights, live in (("shop", False, None), ("shop@2", True, "shop@1")):
        gateway.trainer.asked.clear()
        assert (await create(gateway, model=model, held_out=held_out)).status_code == 200
        context = sent(gateway)[1]
        assert (context["has_weights"], context["live"]) == (has_weights, live)
        assert context["examples"] == ([] if has_weights else shown)
