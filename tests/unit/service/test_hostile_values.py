"""Values that have once brought more than an error of the one shape, each at its route of the whole gateway."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from adapters.json_depth import MAX_LEVELS
from service.registry.objects import TOO_DEEP
from tests.support.adapters import AdapterFiles, make_adapter
from tests.unit.service.gateway_app import BASE, GatewayApp, describe_base
from tests.unit.service.test_fuzz_routes import FORBIDDEN, deep, gateway_in, safetensors

Ran = tuple[asyncio.Runner, GatewayApp]
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "x"}]}
URL = "http://192.0.2.1:8/x"
"""Of a network that is set aside for documents: nothing answers there."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    with gateway_in(tmp_path_factory.mktemp("g")) as both:
        yield both


@pytest.fixture(scope="module")
def adapter(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    return make_adapter(tmp_path_factory.mktemp("adapter"), describe_base(ran[1].settings), seed=7)


def ask(ran: Ran, method: str, path: str, **more: Any) -> httpx.Response:
    return ran[0].run(ran[1].http.request(method, path, **more))


def push(ran: Ran, adapter: AdapterFiles, name: str, **parts: Any) -> httpx.Response:
    files = {"config": adapter.config, "weights": ("w.safetensors", adapter.weights)}
    given = {part: value for part, value in parts.items() if part in files}
    data = {"name": name} | {part: value for part, value in parts.items() if part not in files}
    return ask(ran, "POST", "/v1/adapters", data=data, files=files | given)


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert FORBIDDEN.search(found["message"]) is None
    return found


@pytest.mark.parametrize("levels", [MAX_LEVELS + 1, 300, 900, 30_000])
@pytest.mark.parametrize("part", ["metadata", "settings", "config"])
def test_what_is_nested_too_deeply_is_refused_at_push(ran: Ran, adapter: AdapterFiles, part: str, levels: int) -> None:
    inner = deep(levels)
    if part == "config":
        inner = adapter.config.strip()[:-1] + b', "runtime_config": ' + inner + b"}"
    elif part == "settings":
        inner = b'{"sampling": ' + inner + b"}"
    answer = push(ran, adapter, "deep", **{part: inner})
    assert answer.status_code in (400, 422), answer.text
    assert error(answer)["param"].split(".")[0] == part
    assert ask(ran, "GET", "/v1/adapters").status_code == 200


def test_what_is_nested_as_deeply_as_may_be_is_shown_again(ran: Ran, adapter: AdapterFiles) -> None:
    pushed = push(ran, adapter, "as-deep-as-may-be", metadata=deep(MAX_LEVELS))
    assert pushed.status_code == 201, pushed.text
    listed = ask(ran, "GET", "/v1/adapters?limit=100")
    assert listed.status_code == 200
    [shown] = [one for one in listed.json()["data"] if one["name"] == "as-deep-as-may-be"]
    assert shown["versions"][0]["metadata"] == orjson.loads(deep(MAX_LEVELS))


@pytest.mark.parametrize("levels", [300, 900])
def test_a_version_that_was_stored_deeper_hides_no_other(ran: Ran, adapter: AdapterFiles, levels: int) -> None:
    """Gateways before this one took such metadata in."""
    name = f"stored-{levels}"
    assert push(ran, adapter, name).status_code == 201
    store = ran[1].api.state.registry._database
    text = deep(levels).decode()

    async def spoil() -> None:
        await store.run(
            lambda db: db.exec_driver_sql(
                "UPDATE versions SET metadata = ? WHERE adapter_id = (SELECT id FROM adapters WHERE name = ?)",
                (text, name),
            )
        )

    ran[0].run(spoil())
    listed = ask(ran, "GET", "/v1/adapters?limit=100")
    assert listed.status_code == 200, listed.text
    for shown in (
        next(one for one in listed.json()["data"] if one["name"] == name)["versions"][0],
        ask(ran, "GET", f"/v1/adapters/{name}/versions/1").json(),
    ):
        assert shown["metadata"] == {}
        assert shown["warnings"][-1] == TOO_DEEP


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("POST", "/v1/keys", "limits"),
        ("POST", "/v1/vector_stores", "metadata"),
        ("POST", "/v1/vector_stores/vs_x/search", "filters"),
        ("POST", "/v1/fine_tuning/jobs", "hyperparameters"),
        ("POST", "/v1/evaluations", "metric"),
        ("POST", "/v1/revalidations", "all"),
        ("PUT", "/v1/adapters/voice/aliases/live", "split"),
        ("POST", "/v1/adapters/voice/versions/1/verdicts", "evaluation"),
        ("POST", "/v1/chat/completions", "metadata"),
    ],
)
@pytest.mark.parametrize("levels", [MAX_LEVELS + 1, 900, 5_000])
def test_no_route_takes_more_levels(ran: Ran, method: str, path: str, field: str, levels: int) -> None:
    if path.endswith("/search"):
        made = ask(ran, "POST", "/v1/vector_stores", json={"name": "searched"}).json()["id"]
        path = path.replace("vs_x", made)
    body = b'{"model":"tiny","' + field.encode() + b'":' + deep(levels) + b"}"
    answer = ask(ran, method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert ("levels" in error(answer)["message"]) or ("depth" in error(answer)["message"])


def test_a_training_file_with_a_deep_line_is_refused_by_its_line(ran: Ran) -> None:
    line = b'{"prompt": "a", "completion": "b"}\n'
    spoiled = line + b'{"prompt": "a", "completion": "b", "more": ' + deep(300) + b"}\n"
    answer = ask(ran, "POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", spoiled)})
    assert answer.status_code == 400
    assert "line 2: nested more than" in error(answer)["message"]


def test_half_a_character_in_a_tensors_name(ran: Ran, adapter: AdapterFiles) -> None:
    weights = safetensors("base_model.model.\\ud800.lora_A.weight")
    answer = push(ran, adapter, "half", weights=("w.safetensors", weights))
    assert answer.status_code == 422
    assert error(answer)["code"] == "weights_invalid"


@pytest.mark.parametrize("name", ["self", "conversation", "tokenizer_kwargs", "raise_exception", "documents"])
def test_a_template_variable_that_the_renderer_takes_itself(ran: Ran, name: str) -> None:
    answer = ask(ran, "POST", "/v1/chat/completions", json={**CHAT, "chat_template_kwargs": {name: "x"}})
    assert answer.status_code == 400
    assert error(answer)["param"] == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize(
    "said",
    [
        "1 validation error for ChatCompletionRequest\n  Value error [type=value_error, input_value={'a': 1}]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/value_error",
        "render() got multiple values for argument 'self'",
        "'str' object is not callable",
        "'NoneType' object has no attribute 'strip'",
    ],
)
def test_an_engine_that_speaks_of_its_code_is_not_repeated(ran: Ran, said: str) -> None:
    ran[1].engine.failure = (400, {"error": {"message": said, "type": "BadRequestError", "param": None, "code": 400}})
    try:
        answer = ask(ran, "POST", "/v1/chat/completions", json=CHAT)
    finally:
        ran[1].engine.failure = None
    assert answer.status_code == 400
    assert error(answer)["message"] == "the engine rejected the request: one of its values is not supported"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/vector_stores", {"metadata": {"a": 1}}, "metadata.a"),
        ("/v1/vector_stores", {"chunking_strategy": "x"}, "chunking_strategy"),
        ("/v1/vector_stores", {"chunking_strategy": {"type": "static"}}, "chunking_strategy"),
        ("/v1/keys", {"name": "n", "limits": "x"}, "limits"),
        ("/v1/keys", {"name": "n", "limits": {"concurrent": 10**400}}, None),
        ("/v1/evaluations", {"held_out": "f", "arms": [7]}, "arms.0"),
        ("/v1/evaluations", {"held_out": "f", "arms": [{"label": "a", "model": "m", "grounding": 5}]}, None),
    ],
)
def test_a_refusal_names_the_field_and_no_class(ran: Ran, path: str, body: dict[str, Any], param: str | None) -> None:
    answer = ask(ran, "POST", path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    found = error(answer)
    assert param is None or found["param"] == param


@pytest.mark.parametrize(("sent", "status"), [("bytes=x-y", 400), ("lines=1-2", 400), ("bytes=999999999-", 416)])
def test_a_range_that_cannot_be_served(ran: Ran, adapter: AdapterFiles, sent: str, status: int) -> None:
    push(ran, adapter, "ranged")
    uploaded = ask(ran, "POST", "/v1/files", data={"purpose": "assistants"}, files={"file": ("a.txt", b"hello")})
    for path in ("/v1/adapters/ranged/versions/1/files/weights", f"/v1/files/{uploaded.json()['id']}/content"):
        answer = ask(ran, "GET", path, headers={"range": sent})
        assert answer.status_code == status, answer.text
        assert error(answer)["param"] == "Range"
        assert ask(ran, "GET", path, headers={"range": "bytes=0-1"}).status_code == 206


class Connects:
    """Notes where sockets are connected to, by whatever library; names are looked up nowhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[str] = []
        for owner, method in ((socket.socket, "connect"), (socket.socket, "connect_ex")):
            monkeypatch.setattr(owner, method, self._noting(getattr(owner, method)))
        monkeypatch.setattr(socket, "getaddrinfo", self._noting(socket.getaddrinfo))
        monkeypatch.setattr(socket, "create_connection", self._noting(socket.create_connection))

    def _noting(self, real: Any) -> Any:
        def noted(*arguments: Any, **more: Any) -> Any:
            self.places.append(str(arguments))
            return real(*arguments, **more)

        return noted


def urls_in(levels: int) -> Any:
    """A URL, alone and as far down as may be."""
    value: Any = {"url": URL, "image_url": {"url": URL}, "$ref": URL, "file_url": URL, "server_url": URL}
    for _ in range(levels):
        value = {"x": [value, URL], "url": URL}
    return value


FIELDS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": (
        *("messages", "tools", "tool_choice", "response_format", "structured_outputs", "grounding", "metadata"),
        *("chat_template_kwargs", "prediction", "documents", "web_search_options", "mm_processor_kwargs", "user"),
    ),
    "/v1/responses": ("input", "instructions", "tools", "text", "metadata", "prompt", "include"),
    "/v1/messages": ("messages", "system", "tools", "metadata", "output_config", "mcp_servers", "container"),
    "/v1/completions": ("prompt", "structured_outputs", "response_format", "user"),
    "/v1/embeddings": ("input", "messages"),
    "/v1/tokenize": ("prompt", "messages", "tools"),
    "/v1/vector_stores": ("name", "description", "metadata", "file_ids", "chunking_strategy"),
    "/v1/fine_tuning/jobs": ("model", "training_file", "hyperparameters", "method", "integrations", "metadata"),
    "/v1/evaluations": ("model", "held_out", "arms", "metric", "suites", "judge", "metadata"),
    "/v1/keys": ("name", "project", "adapters", "stores"),
    "/v1/adapters/voice/versions/1/verdicts": ("sentence", "metric", "evaluation", "files"),
}
SHAPES: tuple[Any, ...] = (
    URL,
    [URL],
    urls_in(0),
    [urls_in(3)],
    urls_in(20),
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}],
    [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}],
    [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}],
    [{"role": "user", "content": [{"type": "input_file", "file_url": URL}]}],
    [{"role": "user", "content": [{"type": "file", "file": {"file_id": URL}}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"$ref": URL}}}],
    [{"type": "mcp", "server_url": URL, "server_label": "x"}],
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": URL, "$schema": URL, "$id": URL}}},
    {"json": {"$ref": URL}},
    {"vector_store_ids": [URL], "provider": URL, "template": URL},
)


def test_no_url_in_a_body_is_ever_fetched(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    connects = Connects(monkeypatch)
    sound = {
        **{"/v1/chat/completions": CHAT, "/v1/tokenize": CHAT, "/v1/messages": {**CHAT, "max_tokens": 3}},
        **{"/v1/completions": {"model": BASE, "prompt": "x"}, "/v1/responses": {"model": BASE, "input": "x"}},
    }
    statuses = set()
    for path, names in FIELDS.items():
        for name in names:
            for shape in SHAPES:
                answer = ask(ran, "POST", path, json={**sound.get(path, {"model": BASE}), name: shape})
                assert answer.status_code < 500, (path, name, answer.text)
                statuses.add(answer.status_code)
    assert {200, 400} <= statuses
    strangers = [place for place in connects.places if "192.0.2.1" in place]
    assert strangers == []
    # what it does connect to is what it was configured with: the engine's and the trainer's sockets, the embeddings
    home = str(ran[1].settings.home)
    assert all(home in place or "127.0.0.1" in place for place in connects.places), connects.places
    # connections are kept, so there may have been none: show that one would have been seen
    with socket.create_server(("127.0.0.1", 0)) as server:
        ran[0].run(asyncio.open_connection(*server.getsockname()))[1].close()
        assert any(str(server.getsockname()[1]) in place for place in connects.places)


def test_no_url_of_a_version_is_ever_fetched(ran: Ran, adapter: AdapterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    connects = Connects(monkeypatch)
    config = orjson.loads(adapter.config) | {"base_model_name_or_path": URL, "auto_mapping": {"parent_library": URL}}
    settings = {"system_prompt": URL, "grounding": {"provider": "embedded", "template": f"{URL} {{passages}}"}}
    for number, parts in enumerate(
        (
            {"config": orjson.dumps(config)},
            {"metadata": orjson.dumps({"url": URL, "lineage": {"files": [URL]}, "deep": urls_in(10)})},
            {"settings": orjson.dumps(settings)},
            {"readme": f"![x]({URL})"},
        )
    ):
        answer = push(ran, adapter, f"urls-{number}", **parts)
        assert answer.status_code < 500, answer.text
        ask(ran, "POST", "/v1/chat/completions", json={**CHAT, "model": f"urls-{number}"})
    assert [place for place in connects.places if "192.0.2.1" in place] == []


def test_refused_requests_stand_in_the_audit(ran: Ran) -> None:
    scoped = ran[0].run(ran[1].key("infer", project="narrow"))
    for path, method, key, status in (
        ("/v1/chat/completions", "POST", "hk_wrong", 401),
        ("/v1/models", "GET", "hk_wrong", 401),
        ("/v1/adapters", "GET", "hk_wrong", 401),
        ("/v1/adapters", "GET", scoped, 403),
        ("/v1/keys", "GET", scoped, 403),
    ):
        answer = ask(
            ran, method, path, headers={"authorization": f"Bearer {key}"}, json={} if method == "POST" else None
        )
        assert answer.status_code == status
    entries = ask(ran, "GET", "/v1/audit?action=access.refused&limit=100").json()["data"]
    told = {(entry["target"], entry["project"]): entry["detail"]["count"] for entry in entries}
    assert told["insufficient_scope", "narrow"] == 2
    assert told["invalid_api_key", "(none)"] >= 3
    assert "hk_wrong" not in json.dumps(entries)
    assert scoped not in json.dumps(entries)


def test_metrics_without_a_key_name_nobody(ran: Ran) -> None:
    key = ran[0].run(ran[1].key("infer", project="secret-project"))
    assert ask(ran, "POST", "/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"}).is_success
    assert ask(ran, "POST", "/v1/chat/completions", json={**CHAT, "model": "voice"}).is_success
    named = ask(ran, "GET", "/metrics").text
    assert 'project="secret-project"' in named
    assert 'adapter="voice"' in named
    for headers in ({"authorization": ""}, {"authorization": f"Bearer {key}"}, {"authorization": "Bearer wrong"}):
        answer = ask(ran, "GET", "/metrics", headers=headers)
        assert answer.status_code == 200
        assert "secret-project" not in answer.text
        assert 'adapter="voice"' not in answer.text
        assert 'project="(all)"' in answer.text
        assert key.split("_")[0] + "_" not in answer.text.replace("hatrack_", "")


def test_nothing_is_replayed_for_another_project(ran: Ran) -> None:
    """The engine is asked for each, under a salt of the project's own: no shared prefix cache tells by its time."""
    ran[1].engine.asked.clear()
    for project in ("first", "second"):
        key = ran[0].run(ran[1].key("infer", project=project))
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "the-same"}
        answer = ask(ran, "POST", "/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == 200
        assert "x-hatrack-replayed" not in answer.headers
    salts = [body["cache_salt"] for path, body in ran[1].engine.asked if path == "/v1/chat/completions"]
    assert len(salts) == 2
    assert salts[0] != salts[1]
