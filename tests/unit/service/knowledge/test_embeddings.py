"""`/v1/embeddings` through the whole gateway and the embedder's process, with the official client and ours."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.config import Settings, load_settings
from service.errors import SettingsError
from tests.support.adapters import make_base
from tests.unit.service.gateway_app import ADMIN_KEY, BASE, GatewayApp, running
from tests.unit.service.knowledge.knowledge_app import WIDTH, vector

NAME = "words"


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / BASE)


@asynccontextmanager
async def client_of(gateway: GatewayApp, key: str = ADMIN_KEY) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client; each answer is held to `/openapi.json`."""
    hooks = {"response": [gateway.hold_to_the_document]}
    transport = httpx.ASGITransport(app=gateway.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", event_hooks=hooks) as http:
        yield openai.AsyncOpenAI(api_key=key, base_url="http://test/v1", http_client=http, max_retries=0, timeout=240)


def unit(text: str) -> np.ndarray[Any, Any]:
    found = np.array(vector(text), dtype=np.float32)
    return found / np.linalg.norm(found)


async def test_the_official_client_gets_vectors_tokens_and_usage(tmp_path: Path, tiny_base: Path) -> None:
    async with running(tmp_path, tiny_base) as gateway, client_of(gateway, await gateway.key("infer")) as client:
        texts = [f"boots and parcels, number {number}" for number in range(70)]
        answer = await client.embeddings.create(model=NAME, input=texts)  # it asks for base64, and decodes it
        assert [row.index for row in answer.data] == list(range(70))
        for row, text in zip(answer.data, texts, strict=True):
            assert row.embedding == pytest.approx(unit(text), abs=1e-6)
        assert (answer.object, answer.model) == ("list", NAME)
        words = 6 * 70  # with the comma
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (words, words)

        plain = await client.embeddings.create(model=NAME, input="boots", encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(unit("boots"), abs=1e-6)
        raw = await client.embeddings.with_raw_response.create(model=NAME, input="boots", encoding_format="base64")
        packed = base64.b64decode(raw.http_response.json()["data"][0]["embedding"])
        assert np.frombuffer(packed, dtype="<f4") == pytest.approx(unit("boots"), abs=1e-6)
        assert len(packed) == 4 * WIDTH

        shown = await client.models.retrieve(NAME)
        assert (shown.id, shown.type) == (NAME, "embedding")  # type: ignore[attr-defined]
        assert [(card.id, card.type) async for card in client.models.list()] == [  # type: ignore[attr-defined]
            (BASE, "chat"),
            (NAME, "embedding"),
        ]
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
        assert refused.value.code == "model_only_embeds"
        await usage_is_counted(gateway, words + 2)


async def usage_is_counted(gateway: GatewayApp, tokens: int) -> None:
    """Usage, costs and metrics have the tokens, under the embedder's name, and no engine time."""
    rows = (await gateway.http.get("/v1/usage", params={"group_by": "adapter"})).json()["data"]
    assert [(row["adapter"], row["requests"], row["prompt_tokens"], row["errors"]) for row in rows] == [
        (NAME, 4, tokens, 1)
    ]
    costs = (await gateway.http.get("/v1/costs", params={"group_by": "adapter"})).json()["data"]
    [row] = [row for row in costs if row["adapter"] == NAME]
    assert (row["prompt_tokens"], row["seconds"]["serving"]) == (tokens, 0)
    metrics = (await gateway.http.get("/metrics", headers={"authorization": f"Bearer {ADMIN_KEY}"})).text
    labels = 'adapter="(embedder)",project="default",version=""'
    assert f"hatrack_prompt_tokens_total{{{labels}}} {float(tokens)}" in metrics
    assert f"hatrack_adapter_requests_running{{{labels}}}" not in metrics, "it has no place in the engine's queue"


async def test_the_embedder_is_not_part_of_what_a_hosted_model_would_cost(tmp_path: Path, tiny_base: Path) -> None:
    prices = {"price_hosted_input": 1e6, "price_hosted_output": 0.0}
    async with running(tmp_path, tiny_base, **prices) as gateway:
        await gateway.http.post("/v1/embeddings", json={"model": NAME, "input": "four words in it"})
        chat = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
        assert (await gateway.http.post("/v1/chat/completions", json=chat)).status_code == 200
        rows = (await gateway.http.get("/v1/costs", params={"group_by": "adapter"})).json()["data"]
        [whole] = (await gateway.http.get("/v1/costs", params={"group_by": "project"})).json()["data"]
    assert {row["adapter"]: (row["prompt_tokens"], row["hosted"]) for row in rows} == {BASE: (3, 3.0), NAME: (4, 0.0)}
    assert (whole["prompt_tokens"], whole["hosted"]) == (7, 3.0)


async def test_a_name_of_its_own_is_taken_for_adapters_and_off_is_off(tmp_path: Path, tiny_base: Path) -> None:
    prompt = {"settings": {"system_prompt": "Be brief."}}
    async with running(tmp_path / "named", tiny_base, embeddings_name="meaning") as gateway:
        answer = await gateway.http.post("/v1/embeddings", json={"model": "meaning", "input": "a"})
        assert answer.json()["model"] == "meaning"
        refused = await gateway.http.post("/v1/adapters", json={"name": "meaning", **prompt})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "name_reserved")
        assert "the embedding model's name" in refused.json()["error"]["message"]
    for name, off in (("without", {"embeddings_api": False}), ("nothing", {"knowledge": False})):
        async with running(tmp_path / name, tiny_base, **off) as gateway:
            nobody = await gateway.http.post("/v1/embeddings", json={"model": NAME, "input": "a"})
            assert (nobody.status_code, nobody.json()["error"]["code"]) == (404, "model_not_found")
            assert len((await gateway.http.get("/v1/models")).json()["data"]) == 1


async def test_an_endpoint_that_is_away_is_503_and_one_that_fails_502(tmp_path: Path, tiny_base: Path) -> None:
    async with running(tmp_path, tiny_base, embeddings_url="http://127.0.0.1:9/v1") as gateway:
        key = await gateway.key("infer", limits={"tokens_per_minute": 100})
        async with client_of(gateway, key) as client:
            with pytest.raises(openai.InternalServerError) as away:
                await client.embeddings.create(model=NAME, input="x" * 200)
    assert (away.value.status_code, away.value.code) == (503, "embedder_unavailable")
    assert "cannot be reached" in away.value.message


async def test_one_that_cannot_start_says_why_and_one_that_starts_asks_for_patience(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"embeddings_url": "", "embeddings_model": str(tmp_path / "no-such-model")}
    async with running(tmp_path, tiny_base, **broken) as gateway:
        ask = {"model": "no-such-model", "input": "a"}
        monkeypatch.setattr("service.knowledge.embeddings.INPUTS_START_TIMEOUT_S", 0.01)
        starting = await gateway.http.post("/v1/embeddings", json=ask)
        assert (starting.status_code, starting.json()["error"]["code"]) == (503, "embedder_unavailable")
        assert "is starting" in starting.json()["error"]["message"]
        monkeypatch.setattr("service.knowledge.embeddings.INPUTS_START_TIMEOUT_S", 240.0)
        down = await gateway.http.post("/v1/embeddings", json=ask, timeout=240)
        assert down.status_code == 503
        assert "exit code 3; see embedder.log" in down.json()["error"]["message"]
        assert down.headers["retry-after"]


def test_the_bases_name_is_not_the_embedders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_BASE_NAME", "all-minilm-l6-v2")
    with pytest.raises(SettingsError, match="HATRACK_EMBEDDINGS_NAME"):
        load_settings()
    monkeypatch.setenv("HATRACK_EMBEDDINGS_NAME", "meaning")
    assert load_settings().embedder_served_name == "meaning"
    monkeypatch.delenv("HATRACK_EMBEDDINGS_NAME")
    monkeypatch.setenv("HATRACK_EMBEDDINGS_API", "false")
    assert load_settings().embedder_served_name is None


@pytest.mark.parametrize(
    ("model", "name"),
    [("", "all-minilm-l6-v2"), ("BAAI/bge-small-en-v1.5", "bge-small-en-v1.5"), ("/models/My E5/", "my-e5")],
)
def test_the_name_comes_from_the_model(model: str, name: str) -> None:
    assert Settings(engine_device="cpu", embeddings_model=model).embedder_served_name == name


async def test_our_client_embeds(tmp_path: Path, tiny_base: Path) -> None:
    """Over a real port would be the same: here the synchronous client's requests are sent by the asynchronous one."""
    from service.client import HatrackClient

    async with running(tmp_path, tiny_base) as gateway:
        loop = asyncio.get_running_loop()

        def send(request: httpx.Request) -> httpx.Response:
            sent = gateway.http.request(
                request.method, request.url.path, content=request.content, headers=dict(request.headers)
            )
            answer = asyncio.run_coroutine_threadsafe(sent, loop).result(240)
            return httpx.Response(answer.status_code, content=answer.content)

        def embed() -> Any:
            with HatrackClient("http://test", ADMIN_KEY, transport=httpx.MockTransport(send)) as client:
                [name] = [model["id"] for model in client.models.list() if model.get("type") == "embedding"]
                return client.embeddings.create(name, ["boots", "and parcels"])

        answer = await asyncio.to_thread(embed)
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["data"][1]["embedding"] == pytest.approx(unit("and parcels"), abs=1e-6)
