from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from adapters import errors
from service.errors import BadRequest, to_http
from service.registry.schemas import AdapterSettings
from service.registry.upload import parse_settings
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import ADMIN, KEY, RegistryApp

Files = Callable[..., AdapterFiles]


async def test_without_a_key_nothing_is_read(registry_app: RegistryApp) -> None:
    for method, path in [("GET", ""), ("POST", ""), ("GET", "/voice"), ("PUT", "/voice/aliases/live")]:
        answer = await registry_app.http.request(method, f"/v1/adapters{path}", headers={"authorization": ""})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_downloads_are_what_was_uploaded(registry_app: RegistryApp, files: Files) -> None:
    adapter = files(seed=1)
    await registry_app.push("voice", adapter)
    config = await registry_app.http.get("/v1/adapters/voice/versions/1/files/config")
    weights = await registry_app.http.get("/v1/adapters/voice/versions/1/files/weights")
    assert config.content == adapter.config
    assert weights.content == adapter.weights
    assert 'filename="adapter_model.safetensors"' in weights.headers["content-disposition"]
    assert (await registry_app.http.get("/v1/adapters/voice/versions/1/files/readme")).status_code == 404


@pytest.mark.parametrize(("asked", "status"), [("bytes=0-7", 206), ("bytes=x", 400), ("bytes=99999999-", 416)])
async def test_a_part_of_the_weights_is_downloaded(
    registry_app: RegistryApp, files: Files, asked: str, status: int
) -> None:
    adapter = files(seed=1)
    await registry_app.push("voice", adapter)
    answer = await registry_app.http.get("/v1/adapters/voice/versions/1/files/weights", headers={"range": asked})
    assert answer.status_code == status
    assert status != 206 or answer.content == adapter.weights[:8]


def test_the_document_and_the_checks_agree_on_what_a_version_may_set() -> None:
    schema = Draft202012Validator(AdapterSettings.model_json_schema())
    for sampling, allowed in (
        ({"temperature": 2, "top_k": -1, "stop": "x", "seed": 2**63 - 1}, True),
        ({"temperature": 2.1}, False),
        ({"max_tokens": 0}, False),
        ({"stop": [""]}, False),
        ({"stop": ["x"] * 17}, False),
        ({"colour": 1}, False),
    ):
        assert schema.is_valid({"sampling": sampling}) == allowed
        with nullcontext() if allowed else pytest.raises(BadRequest):
            parse_settings({"sampling": sampling})


async def test_lists_are_paged_oldest_first(registry_app: RegistryApp, files: Files) -> None:
    for seed, name in enumerate(["zebra", "ant", "mole"]):
        await registry_app.push(name, files(seed=seed))
    page = (await registry_app.http.get("/v1/adapters?limit=2")).json()
    assert ([item["name"] for item in page["data"]], page["object"], page["has_more"]) == (
        ["zebra", "ant"],
        "list",
        True,
    )
    assert page["data"][0]["aliases"] == {"live": 1}
    rest = (await registry_app.http.get("/v1/adapters?limit=2&after=ant")).json()
    assert ([item["name"] for item in rest["data"]], rest["has_more"]) == (["mole"], False)
    assert (await registry_app.http.get("/v1/adapters?after=nobody")).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b'{"version": 1, "colour": 2}', 400, "colour"),
        (b'{"version": "1"}', 400, "version"),
        (b'{"version": 0}', 400, "version"),
        (b"{}", 400, "version"),
        (b"[]", 400, None),
        (b"{", 400, None),
        (b" " * 70_000, 413, None),
        (b'{"version": 9}', 404, None),
    ],
)
async def test_the_body_of_a_promotion_is_checked(
    registry_app: RegistryApp, files: Files, body: bytes, status: int, param: str | None
) -> None:
    await registry_app.push("voice", files(seed=1))
    answer = await registry_app.http.put("/v1/adapters/voice/aliases/live", content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    "path",
    ["voice", "voice/versions/1", "voice/versions/x", "Voice", "voice/aliases/live", "voice/versions/1/files/config"],
)
async def test_what_does_not_exist_is_404(registry_app: RegistryApp, path: str) -> None:
    assert (await registry_app.http.get(f"/v1/adapters/{path}")).status_code == 404


async def test_what_was_probably_meant_is_named(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("tidewater", files(seed=1))
    for path in ("", "/versions/1", "/aliases/live", "/versions/1/files/config"):
        error = (await registry_app.http.get(f"/v1/adapters/tidewatr{path}")).json()["error"]
        assert error["code"] == "adapter_not_found"
        assert error["message"] == "the adapter `tidewatr` does not exist; did you mean `tidewater`?"
    for name in ("nobody", "tiny"):  # the base is no adapter
        assert "did you mean" not in (await registry_app.http.get(f"/v1/adapters/{name}")).text


async def test_only_what_the_key_may_use_is_named(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("tidewater", files(seed=1))
    await registry_app.push("tidewater-2", files(seed=2))
    key = await registry_app.key(adapters=("*-2", "tidewatr"))
    for name in ("tidewatr", "tidewater"):  # one that does not exist, and one that is not the key's
        answer = await registry_app.http.get(f"/v1/adapters/{name}", headers=key)
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            404,
            f"the adapter `{name}` does not exist; did you mean `tidewater-2`?",
        )
    other = await registry_app.key(project="other")
    assert "did you mean" not in (await registry_app.http.get("/v1/adapters/tidewatr", headers=other)).text


async def test_promotions_at_once_end_in_one_of_them(registry_app: RegistryApp, files: Files) -> None:
    for seed in (1, 2, 3):
        await registry_app.push("voice", files(seed=seed))
    url = "/v1/adapters/voice/aliases/live"
    answers = await asyncio.gather(*(registry_app.http.put(url, json={"version": n % 3 + 1}) for n in range(12)))
    assert {answer.status_code for answer in answers} == {200}
    shown = (await registry_app.http.get(url)).json()
    assert registry_app.catalog.resolve(ADMIN, "voice").version == shown["version"] == shown["history"][0]["version"]


async def test_a_client_that_disconnects_in_its_upload_leaves_nothing(registry_app: RegistryApp, files: Files) -> None:
    part = b'--cut\r\nContent-Disposition: form-data; name="weights"; filename="w.safetensors"\r\n\r\n'
    events = iter([{"type": "http.request", "body": part + files(seed=1).weights, "more_body": True}])
    sent: list[MutableMapping[str, Any]] = []

    async def come() -> MutableMapping[str, Any]:
        return next(events, {"type": "http.disconnect"})

    async def go(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/adapters",
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {KEY}".encode()),
            (b"content-type", b"multipart/form-data; boundary=cut"),
        ],
    }
    await registry_app.app(scope, come, go)
    assert sent[0]["status"] == 400
    assert registry_app.leftovers() == []
    assert registry_app.store.digests() == []


def test_statuses_of_adapter_errors() -> None:
    kinds = {errors.TooLarge: 413, errors.PickleRefused: 415, errors.DiskFull: 507, errors.DoraUnsupported: 422}
    for kind, status in kinds.items():
        answer = to_http(kind("why", param="weights"))
        assert (answer.status, answer.code, answer.param, answer.message) == (status, kind.code, "weights", "why")
