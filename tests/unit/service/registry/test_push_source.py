"""`POST /v1/adapters` with a `source`: from a hub on this machine to a version that is ready."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base import BaseDescription
from service.client.adapters import PushProgress
from service.errors import EngineUnavailable
from service.registry import proving, push_events
from service.registry.push import PushResult, PushStage
from service.registry.push_events import PushEvents
from service.registry.sources.fetch import FetchRequest
from tests.support.adapters import AdapterFiles
from tests.support.sources import Hub, running, sha256
from tests.unit.service.registry.conftest import RegistryApp

Files = Callable[..., AdapterFiles]
SOURCE = "hf://acme/voice@main"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    with running(hub, hub.cdn):
        yield hub


@pytest.fixture
async def app(tmp_path: Path, base: BaseDescription, hub: Hub) -> AsyncIterator[RegistryApp]:
    """A registry whose operator lets it fetch from one organization of the hub."""
    sources = {"sources": ("hf://acme", hub.cdn.url), "hub_url": hub.url}
    async with RegistryApp(tmp_path / "home", base, **sources).run() as ready:
        yield ready


@pytest.fixture
def adapter(hub: Hub, files: Files) -> AdapterFiles:
    """An adapter that is in the hub as acme/voice."""
    made = files(seed=1)
    hub.put("acme/voice", in_hub(made))
    return made


def in_hub(made: AdapterFiles) -> dict[str, bytes]:
    return {"adapter_config.json": made.config, "adapter_model.safetensors": made.weights, "README.md": b"# Voice"}


async def push(app: RegistryApp, *, query: str = "", name: str = "voice", **body: Any) -> httpx.Response:
    source = body.pop("source", {"url": SOURCE})
    return await app.http.post(f"/v1/adapters{query}", json={"name": name, "source": source, **body})


async def test_an_adapter_from_the_hub_becomes_a_version_that_says_where_it_is_from(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles
) -> None:
    answer = await push(app, settings={"system_prompt": "Be brief."}, metadata={"team": "shop", "source": "mine"})
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["state"], version["aliases"], version["settings"]["system_prompt"]) == (
        "ready",
        ["live"],
        "Be brief.",
    )
    commit = hub.repositories["acme/voice"].branches["main"]
    record = version["metadata"]["source"]
    assert (record["url"], record["revision"], record["sha256"]) == (
        f"hf://acme/voice@{commit}",
        commit,
        sha256(adapter.weights),
    )
    assert version["metadata"]["team"] == "shop"
    weights = await app.http.get("/v1/adapters/voice/versions/1/files/weights")
    config = await app.http.get("/v1/adapters/voice/versions/1/files/config")
    assert (weights.content, config.content) == (adapter.weights, adapter.config)
    assert list((app.settings.home / "sources").iterdir()) == []


async def test_the_audit_has_what_was_fetched(app: RegistryApp, adapter: AdapterFiles) -> None:
    await push(app)
    fetched, pushed = (row for row in await app.audit() if row.action in ("adapter.fetch", "adapter.push"))
    assert (fetched.target, pushed.target) == ("voice", "voice@1")
    assert fetched.detail["sha256"] == sha256(adapter.weights)


async def test_the_same_source_again_is_the_same_version(app: RegistryApp, adapter: AdapterFiles) -> None:
    await push(app)
    again = await push(app)
    assert (again.status_code, again.json()["version"]) == (200, 1)


async def test_an_upload_of_the_files_is_the_same_version(app: RegistryApp, adapter: AdapterFiles) -> None:
    await push(app)
    assert (await app.push("voice", adapter)).json()["version"] == 1


async def test_without_waiting_it_is_proven_later(app: RegistryApp, adapter: AdapterFiles) -> None:
    answer = await push(app, query="?wait=false")
    assert (answer.status_code, answer.json()["state"]) == (202, "proving")
    await app.registry.wait_idle()
    assert (await app.version("voice@1"))["state"] == "ready"


# what is refused


async def test_what_the_list_does_not_cover_is_403(app: RegistryApp, hub: Hub) -> None:
    answer = await push(app, source={"url": "hf://mallory/voice"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (403, "source_not_allowed", "source.url")
    assert "HATRACK_SOURCES" in error["message"]
    assert hub.seen == []


async def test_without_the_setting_every_source_is_403(registry_app: RegistryApp) -> None:
    answer = await push(registry_app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "source_not_allowed")


@pytest.mark.parametrize(
    ("source", "status", "code", "param"),
    [
        ({"url": "out/voice"}, 422, "source_invalid", "source"),
        ({"url": "https://user:pw@files.example/x"}, 422, "source_invalid", "source"),
        ({"url": ""}, 400, "invalid_value", "source.url"),
        ({"url": 3}, 400, "invalid_value", "source.url"),
        ({"url": SOURCE, "sha256": "abc"}, 400, "invalid_value", "source.sha256"),
        ({"url": SOURCE, "sha256": "0" * 65}, 400, "invalid_value", "source.sha256"),
        ({"url": SOURCE, "sha256": "sha256:" + "0" * 64}, 400, "invalid_value", "source.sha256"),
        ({"url": SOURCE, "sha256": "0" * 64 + "\n"}, 400, "invalid_value", "source.sha256"),
        ({"url": SOURCE, "headers": {}}, 400, "unknown_parameter", "source.headers"),
        ({}, 400, "missing_required_parameter", "source.url"),
        ("hf://acme/voice", 400, "invalid_value", "source"),
        ({"url": "hf://acme/nobody"}, 422, "source_not_found", "source.url"),
        ({"url": SOURCE, "sha256": "0" * 64}, 422, "source_digest_mismatch", "source.sha256"),
    ],
)
async def test_a_source_is_checked(
    app: RegistryApp, adapter: AdapterFiles, source: Any, status: int, code: str, param: str
) -> None:
    answer = await push(app, source=source)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert app.leftovers() == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "Voice!"}, 422, "name_invalid"),
        ({"name": "tiny"}, 422, "name_reserved"),
        ({"alias": "not an alias"}, 422, "name_invalid"),
        ({"metadata": {"proof": 3}}, 422, "proof_invalid"),
        ({"settings": {"sampling": {"temperature": 9}}}, 400, "invalid_value"),
        ({"expires_at": 1}, 400, "invalid_value"),
    ],
)
async def test_the_rest_of_the_body_is_checked_before_anything_is_fetched(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await push(app, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert hub.seen == []


async def test_the_embedders_name_is_refused_before_anything_is_fetched(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles
) -> None:
    app.catalog.embedder_name = "meaning"
    answer = await push(app, name="meaning")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "name_reserved")
    assert hub.seen == []


async def test_a_key_fetches_only_into_names_that_it_may_use(app: RegistryApp, hub: Hub, adapter: AdapterFiles) -> None:
    key = await app.key(adapters=("shop-*",))
    body = {"name": "voice", "source": {"url": SOURCE}}
    answer = await app.http.post("/v1/adapters", json=body, headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapter_not_allowed")
    assert hub.seen == []


@pytest.mark.parametrize(
    ("variant", "code"),
    [("nan", "weights_not_finite"), ("dora", "dora_unsupported"), ("unknown_layer", "module_unknown")],
)
async def test_what_was_fetched_is_inspected_as_an_upload_is(
    app: RegistryApp, hub: Hub, files: Files, variant: str, code: str
) -> None:
    hub.put("acme/voice", in_hub(files(variant=variant)))
    answer = await push(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert (app.leftovers(), app.store.digests()) == ([], [])
    assert (await app.http.get("/v1/adapters/voice")).status_code == 404


async def test_what_the_proof_does_not_show_leaves_no_version(app: RegistryApp, adapter: AdapterFiles) -> None:
    app.engine.effect = 0.0
    answer = await push(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_applied")
    assert (await app.http.get("/v1/adapters/voice")).status_code == 404


def kept(app: RegistryApp) -> list[str]:
    """What is kept of fetches."""
    folder = app.settings.home / "sources"
    return sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []


def weights_asked(hub: Hub) -> list[str | None]:
    return [seen.range for seen in hub.cdn.seen]


async def test_without_room_for_its_proof_nothing_is_fetched(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "MAX_PROVING", 0)
    answer = await push(app, query="?wait=false")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_proving")
    assert hub.seen == []


async def test_while_the_engine_is_down_nothing_is_fetched(app: RegistryApp, hub: Hub, adapter: AdapterFiles) -> None:
    app.engine.down = True
    answer = await push(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    (last,) = events_of((await push(app, query="?stream=true")).text)
    assert (last["status"], last["error"]["code"]) == (503, "engine_unavailable")
    assert hub.seen == []


async def test_without_waiting_it_is_fetched_while_the_engine_is_down(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles
) -> None:
    app.engine.down = True
    answer = await push(app, query="?wait=false")
    assert (answer.status_code, answer.json()["state"]) == (202, "proving")
    assert weights_asked(hub) == [None]


async def test_an_engine_that_stops_during_the_fetch_costs_no_second_download(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(app.engine, "logprobs", not_ready)
        assert (await push(app)).status_code == 503
    assert kept(app) == [".json", ".part"]
    assert (await push(app)).status_code == 201
    assert weights_asked(hub)[-1] == f"bytes={len(adapter.weights) - 1}-"
    assert kept(app) == []


async def not_ready(*_arguments: object) -> None:
    raise EngineUnavailable("the engine is starting")


async def test_of_what_can_never_be_a_version_nothing_is_kept(app: RegistryApp, hub: Hub, files: Files) -> None:
    hub.put("acme/voice", in_hub(files(variant="nan")))
    assert (await push(app)).status_code == 422
    assert kept(app) == []


# as events


def test_the_client_knows_the_fields_of_an_event() -> None:
    told = {"object": "adapter.push", **PushStage("adapter_model.safetensors", 1, 2).shown()}
    assert told.keys() == PushProgress.__annotations__.keys()
    assert PushStage().shown() == {"stage": "proving"}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_a_stream_ends_with_the_version(app: RegistryApp, adapter: AdapterFiles) -> None:
    answer = await push(app, query="?stream=true")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *stages, version = events_of(answer.text)
    assert {stage["object"] for stage in stages} <= {"adapter.push"}
    assert (version["object"], version["state"], version["version"]) == ("adapter.version", "ready", 1)


async def test_a_stream_ends_with_the_error(app: RegistryApp, adapter: AdapterFiles) -> None:
    answer = await push(app, query="?stream=true", source={"url": "hf://acme/nobody"})
    (last,) = events_of(answer.text)
    assert (answer.status_code, last["status"], last["error"]["code"]) == (200, 422, "source_not_found")


async def test_what_can_be_refused_at_once_is_no_stream(app: RegistryApp) -> None:
    answer = await push(app, query="?stream=true", source={"url": "hf://mallory/voice"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "source_not_allowed")


async def test_the_events_tell_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_events, "EVERY_S", 0.01)
    proceed = asyncio.Event()

    async def work(tell: Callable[[PushStage], object]) -> PushResult:
        tell(PushStage("adapter_model.safetensors", 1, 2))
        await proceed.wait()
        tell(PushStage())
        return PushResult({"object": "adapter.version", "version": 1}, 201)

    stream = PushEvents().stream(work, None)
    first = await anext(stream)
    proceed.set()
    rest = [event async for event in stream]
    told = [event for chunk in [first, *rest] for event in events_of(chunk.decode())]
    assert told == [
        {
            "object": "adapter.push",
            "stage": "fetching",
            "file": "adapter_model.safetensors",
            "bytes": 1,
            "total": 2,
        },
        {"object": "adapter.push", "stage": "proving"},
        {"object": "adapter.version", "version": 1},
    ]


async def test_a_quiet_push_keeps_its_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_events, "QUIET_S", 0.01)
    events = PushEvents()

    async def work(_tell: object) -> PushResult:
        await asyncio.Event().wait()
        raise AssertionError

    stream = events.stream(work, None)
    assert [await anext(stream), await anext(stream)] == [b":\n\n", b":\n\n"]
    await events.close()  # the gateway stops
    (last,) = events_of((await anext(stream)).decode())
    assert (last["status"], last["error"]["code"]) == (503, "unavailable")


async def test_a_caller_that_leaves_ends_the_fetch_and_the_next_goes_on(
    app: RegistryApp, hub: Hub, adapter: AdapterFiles
) -> None:
    released = threading.Event()
    hub.cdn.faults.stalls, hub.cdn.faults.stall_at = released, 20_000
    source = app.registry.fetcher.parse(SOURCE)
    came = asyncio.Event()

    async def work(tell: Callable[[PushStage], object]) -> PushResult:
        request = FetchRequest("default", source, None, lambda _config: None, lambda step: came.set())
        await app.registry.fetcher.fetch(request, lambda _piece: None)
        raise AssertionError

    stream = app.registry.push_events.stream(work, None)
    listener = asyncio.ensure_future(anext(stream))
    await came.wait()
    listener.cancel()
    await asyncio.wait({listener})
    await stream.aclose()
    await app.registry.push_events.close()
    released.set()
    hub.cdn.faults.stalls = None
    assert (await push(app)).status_code == 201
    assert app.leftovers() == []
