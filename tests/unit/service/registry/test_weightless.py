"""Versions without weights: pushed, checked, and then like any other, but that nothing is ever loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base import BaseDescription
from service.access.audit import SYSTEM
from service.access.caller import DEFAULT_PROJECT, Scope
from service.access.records import KeyDraft
from service.registry.catalog import Target
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, RegistryApp
from tests.unit.service.registry.engine import BASE

Files = Callable[..., AdapterFiles]
PROMPT = "You answer for the shop."
EXAMPLES = [{"user": "Do you ship abroad?", "assistant": "Aye, to every harbour."}]


def error_of(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def target(registry_app: RegistryApp, model: str) -> Target:
    return registry_app.catalog.resolve(ADMIN, model)


async def test_settings_alone_are_a_version_that_the_base_answers_for(registry_app: RegistryApp) -> None:
    pushed = await registry_app.push_settings("support", system_prompt=PROMPT, examples=EXAMPLES)
    assert pushed.status_code == 201, pushed.text
    assert pushed.headers["location"] == "/v1/adapters/support/versions/1"
    version = pushed.json()
    assert (version["version"], version["state"], version["servable"]) == (1, "ready", "ok")
    assert (version["digest"], version["rank"], version["alpha"], version["bytes"]) == (None, None, None, 0)
    assert (version["aliases"], version["target_modules"], version["held_back"]) == (["live"], [], None)
    assert version["settings"] == {"system_prompt": PROMPT, "examples": EXAMPLES, "sampling": {}}
    words = len(f"system: {PROMPT} user: {EXAMPLES[0]['user']} assistant: {EXAMPLES[0]['assistant']} user: ?".split())
    assert version["proof"] == {
        "format": 1,
        "kind": "settings",
        "prompt_tokens": words,
        "context_tokens": 2048,
        "warnings": [],
    }
    found = target(registry_app, "support")
    assert (found.engine_model, found.digest, found.name) == (BASE, None, "support@1")
    assert found.counted_as == "default/support@1"
    assert registry_app.engine.asked == []
    assert registry_app.engine.loaded == []
    assert registry_app.registry.counts.adapters == 1


async def test_a_form_without_the_two_files_is_the_same(registry_app: RegistryApp) -> None:
    parts = {"name": (None, "support"), "settings": (None, '{"system_prompt": "Be kind."}'), "readme": (None, "Why.")}
    pushed = await registry_app.http.post("/v1/adapters", files=parts)
    assert (pushed.status_code, pushed.json()["digest"]) == (201, None)
    again = await registry_app.push_settings("support", system_prompt="Be kind.")
    assert (again.status_code, again.json()["version"]) == (200, 1)


async def test_equal_settings_are_the_same_version_and_changed_ones_another(registry_app: RegistryApp) -> None:
    assert (await registry_app.push_settings("support", system_prompt=PROMPT)).status_code == 201
    assert (await registry_app.push_settings("support", system_prompt=PROMPT)).json()["version"] == 1
    other = await registry_app.push_settings("support", system_prompt=PROMPT, examples=EXAMPLES)
    assert (other.status_code, other.json()["version"], other.json()["aliases"]) == (201, 2, [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"name": "support"}, (400, "missing_required_parameter", "settings")),
        ({"name": "support", "settings": {}}, (400, "missing_required_parameter", "settings")),
        ({"name": "support", "settings": {"sampling": {}}}, (400, "missing_required_parameter", "settings")),
        ({"settings": {"system_prompt": "Hi"}}, (400, "missing_required_parameter", "name")),
        ({"name": "No", "settings": {"system_prompt": "Hi"}}, (422, "name_invalid", "name")),
        ({"name": BASE, "settings": {"system_prompt": "Hi"}}, (422, "name_reserved", "name")),
        (
            {"name": "support", "weights": "", "settings": {"system_prompt": "Hi"}},
            (400, "unknown_parameter", "weights"),
        ),
        ([1], (400, "invalid_json", None)),
        (
            {"name": "support", "settings": {"examples": [{"user": "Hi", "assistant": " "}]}},
            (400, "invalid_value", "settings.examples.0.assistant"),
        ),
        (
            {"name": "support", "settings": {"examples": [{"user": "Hi", "assistant": "Ho"}] * 65}},
            (400, "invalid_value", "settings.examples"),
        ),
        (
            {"name": "support", "settings": {"examples": [{"user": "Hi", "system": "Ho", "assistant": "Ho"}]}},
            (400, "unknown_parameter", "settings.examples.0.system"),
        ),
    ],
)
async def test_what_is_no_version_is_refused_by_its_field(
    registry_app: RegistryApp, body: Any, expected: tuple[int, str, str | None]
) -> None:
    refused = await registry_app.http.post("/v1/adapters", json=body)
    assert error_of(refused) == expected, refused.text
    assert registry_app.catalog.snapshot.adapters == {}


async def test_metadata_and_settings_are_bounded_as_in_a_form(registry_app: RegistryApp) -> None:
    body = {"name": "support", "settings": {"system_prompt": "Hi"}, "metadata": {"note": "x" * 262_144}}
    refused = await registry_app.http.post("/v1/adapters", json=body)
    assert error_of(refused) == (413, "request_too_large", "metadata")


async def test_one_file_of_the_two_is_not_enough(registry_app: RegistryApp) -> None:
    settings = (None, '{"system_prompt": "Be kind."}')
    for sent, missing in (("config", "weights"), ("weights", "config")):
        parts = {"name": (None, "support"), "settings": settings, sent: ("file", b"{}" * 20)}
        refused = await registry_app.http.post("/v1/adapters", files=parts)
        assert error_of(refused) == (400, "missing_required_parameter", missing)
    neither = await registry_app.http.post("/v1/adapters", files={"name": (None, "support")})
    assert error_of(neither) == (400, "missing_required_parameter", "weights")
    assert "`settings.system_prompt`" in neither.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "param", "remedy"),
    [
        ({"system_prompt": "w " * 1900}, "settings.system_prompt", "a shorter system prompt"),
        ({"examples": [{"user": "w " * 1000, "assistant": "w " * 1000}]}, "settings.examples", "fewer or shorter"),
        (
            {"system_prompt": "w " * 1000, "sampling": {"max_tokens": 1500}},
            "settings.sampling.max_tokens",
            "`settings.sampling.max_tokens` to 1045 or less",
        ),
    ],
)
async def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(
    registry_app: RegistryApp, settings: dict[str, Any], param: str, remedy: str
) -> None:
    refused = await registry_app.push_settings("support", **settings)
    assert error_of(refused) == (422, "prompt_too_long", param)
    assert remedy in refused.json()["error"]["message"]
    assert registry_app.catalog.snapshot.adapters == {}


async def test_what_the_template_refuses_is_refused_and_what_it_hides_is_said(registry_app: RegistryApp) -> None:
    registry_app.engine.template_refuses = "System role not supported"
    refused = await registry_app.push_settings("support", system_prompt=PROMPT)
    assert error_of(refused) == (422, "prompt_refused", "settings")
    assert "System role not supported" in refused.json()["error"]["message"]
    registry_app.engine.template_refuses, registry_app.engine.template_hides = None, PROMPT
    pushed = await registry_app.push_settings("support", system_prompt=PROMPT, examples=EXAMPLES)
    [warning] = pushed.json()["warnings"]
    assert warning == "The base's chat template does not show the system prompt as it was written."


async def test_without_waiting_it_is_ready_or_rejected_later(registry_app: RegistryApp) -> None:
    later = await registry_app.push_settings("support", query="?wait=false", system_prompt=PROMPT)
    assert (later.status_code, later.json()["state"], later.json()["proof"]) == (202, "proving", None)
    await registry_app.registry.wait_idle()
    assert (await registry_app.version("support@1"))["state"] == "ready"
    registry_app.engine.template_refuses = "no"
    await registry_app.push_settings("support", query="?wait=false", system_prompt="Be short.")
    await registry_app.registry.wait_idle()
    rejected = await registry_app.version("support@2")
    assert (rejected["state"], rejected["reason"]["code"]) == ("rejected", "prompt_refused")
    registry_app.engine.template_refuses = None
    proven = await registry_app.http.post("/v1/adapters/support/versions/2/prove")
    assert (proven.status_code, proven.json()["state"]) == (200, "ready")


async def test_its_stores_must_exist_and_be_readable(registry_app: RegistryApp) -> None:
    registry_app.stores = {"vs_1": DEFAULT_PROJECT, "vs_2": "other"}
    for store in ("vs_2", "vs_none"):
        refused = await registry_app.push_settings("support", grounding={"vector_store_ids": [store]})
        assert error_of(refused) == (404, "vector_store_not_found", "settings.grounding.vector_store_ids")
    pushed = await registry_app.push_settings("support", grounding={"vector_store_ids": ["vs_1"]})
    assert pushed.status_code == 201, pushed.text
    draft = KeyDraft("narrow", DEFAULT_PROJECT, frozenset({Scope.ADAPTERS}), stores=("vs_9*",))
    _, key = await registry_app.keys.mint(SYSTEM, draft)
    body = {"name": "narrow", "settings": {"grounding": {"vector_store_ids": ["vs_1"]}}}
    hidden = await registry_app.http.post("/v1/adapters", json=body, headers={"authorization": f"Bearer {key}"})
    assert error_of(hidden)[:2] == (404, "vector_store_not_found")


async def test_it_can_demand_filters_and_others_settings_stay_as_they_were(registry_app: RegistryApp) -> None:
    registry_app.stores = {"vs_1": DEFAULT_PROJECT}
    grounding = {"vector_store_ids": ["vs_1"]}
    plain = await registry_app.push_settings("support", grounding=grounding)
    assert "required_filters" not in plain.json()["settings"]["grounding"]
    demanding = await registry_app.push_settings("support", grounding={**grounding, "required_filters": ["customer"]})
    assert demanding.json()["settings"]["grounding"]["required_filters"] == ["customer"]
    for wrong, param in (("customer", ""), ([""], ".0"), ([7], ".0"), (["a"] * 9, "")):
        refused = await registry_app.push_settings("support", grounding={**grounding, "required_filters": wrong})
        assert error_of(refused) == (400, "invalid_value", f"settings.grounding.required_filters{param}")


async def test_passages_that_may_not_fit_are_warned_of(registry_app: RegistryApp) -> None:
    registry_app.stores = {"vs_1": DEFAULT_PROJECT}
    pushed = await registry_app.push_settings(
        "support", system_prompt="w " * 1000, grounding={"vector_store_ids": ["vs_1"]}
    )
    [warning] = pushed.json()["warnings"]
    assert warning.startswith("The prompt leaves room for 789 tokens of passages")


async def test_weights_follow_a_prompt_and_back_and_only_they_are_loaded(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push_settings("support", system_prompt=PROMPT)
    pushed = await registry_app.push("support", files(seed=1))
    digest = pushed.json()["digest"]
    registry_app.engine.loaded = []
    live = "/v1/adapters/support/aliases/live"
    split = await registry_app.http.put(live, json={"split": {"1": 1, "2": 1}})
    assert split.status_code == 200, split.text
    assert {target(registry_app, "support").name for _ in range(64)} == {"support@1", "support@2"}
    assert (await registry_app.http.put(live, json={"version": 2})).status_code == 200
    assert target(registry_app, "support").engine_model == digest
    assert registry_app.engine.loaded == [digest]
    registry_app.engine.loaded = []
    assert (await registry_app.http.post(f"{live}/rollback")).status_code == 200
    assert (await registry_app.http.post(f"{live}/rollback")).json()["version"] == 1
    assert target(registry_app, "support").engine_model == BASE
    moved = await registry_app.http.put("/v1/adapters/support/aliases/canary", json={"version": 1})
    assert moved.json()["version"] == 1


async def test_a_pin_of_it_loads_nothing_and_keeps_one_slot_for_what_follows(
    tmp_path: Path, base: BaseDescription, files: Files
) -> None:
    async with RegistryApp(tmp_path / "home", base, engine_slots=3).run() as registry_app:
        await registry_app.push_settings("support", system_prompt=PROMPT)
        for name in ("one", "two"):
            await registry_app.push(name, files(seed=len(name) + ord(name[0])))
        registry_app.engine.loaded = []
        pinned = await registry_app.http.put("/v1/adapters/support/pin")
        assert pinned.json() == {"object": "adapter.pin", "adapter": "support", "pinned": True, "versions": []}
        assert (await registry_app.http.put("/v1/adapters/one/pin")).status_code == 200
        full = await registry_app.http.put("/v1/adapters/two/pin")
        assert error_of(full)[:2] == (409, "too_many_pins")


async def test_it_has_no_files_to_download(registry_app: RegistryApp) -> None:
    await registry_app.push_settings("support", system_prompt=PROMPT)
    for file in ("config", "weights"):
        missing = await registry_app.http.get(f"/v1/adapters/support/versions/1/files/{file}")
        assert error_of(missing) == (404, "version_has_no_files", None)


async def test_it_is_proven_again_judged_and_deleted_like_any_other(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push_settings("support", system_prompt=PROMPT)
    await registry_app.push("voice", files(seed=1))
    assert (await registry_app.http.post("/v1/adapters/support/versions/1/prove")).status_code == 200
    assert (await registry_app.verdict("support@1")).status_code == 201
    assert (await registry_app.version("support@1"))["revalidation"]["state"] == "fresh"
    assert (await registry_app.http.delete("/v1/adapters/support/versions/1")).status_code == 422
    assert (await registry_app.http.delete("/v1/adapters/support/versions/1?force=true")).status_code == 204
    assert await registry_app.registry.collect() == []  # the voice's files are still in use, and nothing else is there
    assert (await registry_app.http.get("/v1/adapters/support")).status_code == 404


async def test_a_restarted_gateway_serves_it_and_takes_up_its_proof(tmp_path: Path, base: BaseDescription) -> None:
    app = RegistryApp(tmp_path / "home", base)
    async with app.run():
        await app.push_settings("support", system_prompt=PROMPT)
        app.engine.down = True
        later = await app.push_settings("support", query="?wait=false", system_prompt="Be short.")
        assert later.status_code == 202, later.text
    app.engine.down = False
    async with app.run():
        assert target(app, "support").counted_as == "default/support@1"
        await app.registry.wait_idle()
        assert (await app.version("support@2"))["state"] == "ready"


async def test_on_another_base_it_does_not_serve(tmp_path: Path, base: BaseDescription) -> None:
    async with RegistryApp(tmp_path / "home", base).run() as app:
        await app.push_settings("support", system_prompt=PROMPT)
    other = base.fingerprint.model_copy(update={"weights": "0" * 16})
    async with RegistryApp(tmp_path / "home", replace(base, fingerprint=other)).run() as app:
        assert (await app.version("support@1"))["servable"] == "other_base"


async def test_examples_of_a_version_with_weights_are_checked_before_its_proof(
    registry_app: RegistryApp, files: Files
) -> None:
    adapter = files(seed=1)
    too_long = {"examples": [{"user": "w " * 2000, "assistant": "w"}]}
    refused = await registry_app.push("voice", adapter, settings=too_long)
    assert error_of(refused) == (422, "prompt_too_long", "settings.examples")
    assert registry_app.engine.asked == []
    pushed = await registry_app.push("voice", adapter, settings={"examples": EXAMPLES})
    assert pushed.status_code == 201, pushed.text
    assert pushed.json()["settings"]["examples"] == EXAMPLES
    assert pushed.json()["proof"]["effect"] == "applied"
    bare = await registry_app.push("voice", adapter)
    assert (bare.json()["version"], bare.json()["settings"]) == (2, {"system_prompt": None, "sampling": {}})


async def test_settings_with_true_are_others_than_those_with_1(registry_app: RegistryApp) -> None:
    """A filter for true finds other passages than one for 1."""

    async def version(value: object) -> int:
        grounding = {"vector_store_ids": [], "filters": {"type": "in", "key": "public", "value": ["yes", value]}}
        pushed = await registry_app.push_settings("support", system_prompt=PROMPT, grounding=grounding)
        assert pushed.status_code in (200, 201), pushed.text
        return int(pushed.json()["version"])

    assert [await version(value) for value in (True, 1, 1.0, True)] == [1, 2, 2, 1]
