"""`/v1/embeddings` on the data path: whose model answers, what is refused, who waits, and what is charged."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest

from service.access.authentication import Authenticator
from service.access.caller import Caller, Limits, Scope
from service.access.limits import KeyLimiter
from service.errors import BadRequest, HatrackError, Unavailable
from service.registry.catalog import AdapterEntry, CatalogSnapshot
from tests.unit.service.inference.fakes import EMBEDDER, World, until, version

PATH = "/v1/embeddings"
LISTING = b'{"object":"list","data":[],"model":"minilm","usage":{}}'


@dataclass
class FakeEmbedder:
    """Answers with ``failure``, or with as many tokens as there are words; holds the answer while ``held`` is unset."""

    failure: HatrackError | None = None
    held: asyncio.Event | None = None
    asked: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)

    async def inputs(self, texts: list[str], **options: Any) -> tuple[bytes, int]:
        self.asked.append((texts, options))
        if self.held is not None:
            await self.held.wait()
        if self.failure is not None:
            raise self.failure
        return LISTING, sum(len(text.split()) for text in texts)


class OneCaller(Authenticator):
    """Everybody is this caller."""

    def __init__(self, caller: Caller) -> None:
        super().__init__("unused-unused-unused")
        self._caller = caller

    def authenticate(self, headers: Any) -> Caller:
        return self._caller


def caller(**more: Any) -> Caller:
    return Caller("k1", "default", frozenset({Scope.INFER}), **more)


async def test_the_embedder_answers_under_its_name_and_the_engine_is_not_asked() -> None:
    embedder = FakeEmbedder()
    world = World(embedder=embedder)
    body = {"model": EMBEDDER, "input": ["two words", "one"], "encoding_format": "base64", "user": "u"}
    answer = await world.ask(PATH, body)
    assert (answer.status, answer.body) == (200, LISTING)
    assert embedder.asked == [
        (["two words", "one"], {"model": EMBEDDER, "single": False, "base64": True, "dimensions": None})
    ]
    assert world.engine.asked == []
    [record] = world.records
    assert record.target is not None
    assert record.usage is not None
    assert (record.target.name, record.usage.prompt_tokens, record.tokens, record.outcome) == (EMBEDDER, 3, 3, "ok")
    assert record.queue_s is not None
    assert record.engine_s == 0, "the embedder takes none of the engine's time"
    await world.ask(PATH, {"model": EMBEDDER, "input": "alone", "dimensions": 8})
    assert embedder.asked[-1] == (["alone"], {"model": EMBEDDER, "single": True, "base64": False, "dimensions": 8})


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input.1", "invalid_value"),
        ({"input": ["a", 7]}, "input.1", "invalid_value"),
        ({"input": {"text": "a"}}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": [1, 2, 3]}, "input", "parameter_refused"),
        ({"input": [[1, 2], [3]]}, "input", "parameter_refused"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "parameter_refused"),
        ({"input": "a", "colour": "red"}, "colour", "unknown_parameter"),
    ],
)
@pytest.mark.parametrize("unknown_fields", ["refuse", "pass"])
async def test_what_it_does_not_take_is_refused_by_name(
    fields: dict[str, Any], param: str, code: str, unknown_fields: str
) -> None:
    embedder = FakeEmbedder()
    world = World(embedder=embedder, unknown_fields=unknown_fields)
    answer = await world.ask(PATH, {"model": EMBEDDER, **fields})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert embedder.asked == []


async def test_token_ids_are_refused_with_what_to_send_instead() -> None:
    answer = await World(embedder=FakeEmbedder()).ask(PATH, {"model": EMBEDDER, "input": [[101, 102]]})
    assert "send text" in answer.error["message"]
    assert "check_embedding_ctx_length=False" in answer.error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/tokenize", {"prompt": "hi"}),
    ],
)
async def test_whatever_else_the_embedder_is_asked_for_is_refused_with_whom_to_ask(
    path: str, body: dict[str, Any]
) -> None:
    world = World(embedder=FakeEmbedder())
    answer = await world.ask(path, {"model": EMBEDDER, **body})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_only_embeds", "model")
    assert f"ask `{world.settings.base_served_name}` or an adapter" in answer.error["message"]
    assert world.engine.asked == []


async def test_messages_refuses_the_embedder_in_anthropics_shape() -> None:
    body = {"model": EMBEDDER, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
    answer = await World(embedder=FakeEmbedder()).ask("/v1/messages", body)
    assert answer.status == 404
    assert answer.json()["error"]["type"] == "not_found_error"


async def test_an_adapter_that_is_asked_for_embeddings_names_the_embedder() -> None:
    world = World(embedder=FakeEmbedder())
    world.engine.status, world.engine.chunks = 404, [b'{"detail":"Not Found"}']
    answer = await world.ask(PATH, {"model": "voice", "input": "a"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_embedding")
    assert answer.error["message"].endswith("does not support embeddings; ask `minilm`")


async def test_without_an_embedder_its_name_is_nobodys() -> None:
    answer = await World().ask(PATH, {"model": EMBEDDER, "input": "a"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_the_list_of_models_says_what_each_is_for() -> None:
    world = World(embedder=FakeEmbedder())
    listed = (await world.ask("/v1/models", b"", method="GET")).json()["data"]
    assert [(card["id"], card["type"]) for card in listed] == [
        ("smol", "chat"), ("voice", "chat"), ("younger", "chat"), (EMBEDDER, "embedding")
    ]  # fmt: skip
    card = (await world.ask(f"/v1/models/{EMBEDDER}", b"", method="GET")).json()
    assert card == listed[-1]
    assert (card["parent"], card["root"]) == (None, EMBEDDER)


async def test_an_adapter_that_had_the_name_first_keeps_it_in_its_project() -> None:
    embedder = FakeEmbedder()
    world = World(embedder=embedder)
    taken = AdapterEntry(EMBEDDER, 900, MappingProxyType({1: version(1)}), {"live": 1})
    adapters = dict(world.catalog.snapshot.adapters)
    world.catalog.replace(CatalogSnapshot(MappingProxyType(adapters | {("default", EMBEDDER): taken})))
    ids = [card["id"] for card in (await world.ask("/v1/models", b"", method="GET")).json()["data"]]
    assert ids.count(EMBEDDER) == 1
    world.engine.chunks = [b"{}"]
    await world.ask("/v1/completions", {"model": EMBEDDER, "prompt": "hi"})
    assert world.engine.last.path == "/v1/completions"
    # elsewhere, and for a key that may not use that adapter, there is none of this name
    for other in (Caller("k", "other", frozenset({Scope.INFER})), caller(adapters=("voice",))):
        assert world.catalog.resolve(other, EMBEDDER).embeds
    assert world.catalog.name_for_embedder("default", EMBEDDER) is None
    assert world.catalog.name_for_embedder("other", EMBEDDER) == EMBEDDER


async def test_a_misspelt_name_is_answered_with_the_embedders() -> None:
    answer = await World(embedder=FakeEmbedder()).ask(PATH, {"model": "miniml", "input": "a"})
    assert "did you mean `minilm`?" in answer.error["message"]


async def test_a_key_needs_the_scope_to_infer() -> None:
    world = World(OneCaller(Caller("k", "default", frozenset({Scope.KNOWLEDGE}))), embedder=FakeEmbedder())
    answer = await world.ask(PATH, {"model": EMBEDDER, "input": "a"})
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")


async def test_a_keys_limits_are_reserved_by_the_estimate_and_settled_by_the_count() -> None:
    limits = Limits(tokens_per_minute=100, requests_per_minute=3)
    world = World(OneCaller(caller(limits=limits)), limiter=KeyLimiter(), embedder=FakeEmbedder())
    long = await world.ask(PATH, {"model": EMBEDDER, "input": "x" * 320})  # 80 tokens by estimate, one word
    assert (long.status, long.headers["x-ratelimit-remaining-tokens"]) == (200, "20")
    again = await world.ask(PATH, {"model": EMBEDDER, "input": "x" * 320})
    assert (again.status, again.headers["x-ratelimit-remaining-tokens"]) == (200, "19"), "one word was charged"
    over = await world.ask(PATH, {"model": EMBEDDER, "input": "y" * 320 + " " + "z " * 80})
    assert (over.status, over.error["code"]) == (429, "rate_limit_exceeded")
    assert "requested 120" in over.error["message"]
    fourth = await world.ask(PATH, {"model": EMBEDDER, "input": "a"})
    assert "requests_per_minute" in fourth.error["message"]


async def test_what_the_embedder_read_is_charged_and_what_it_never_got_is_not() -> None:
    embedder = FakeEmbedder(Unavailable("it is starting", code="embedder_unavailable"))
    world = World(embedder=embedder)
    away = await world.ask(PATH, {"model": EMBEDDER, "input": "x" * 40})
    assert (away.status, away.error["code"], away.headers["retry-after"]) == (503, "embedder_unavailable", "5")
    embedder.failure = BadRequest("too long", param="input", code="context_length_exceeded")
    refused = await world.ask(PATH, {"model": EMBEDDER, "input": "x" * 40})
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert [record.tokens for record in world.records] == [None, 10]
    assert [record.outcome for record in world.records] == ["failed", "refused"]


async def test_few_are_with_the_embedder_at_once_and_one_place_is_left_for_another_project() -> None:
    embedder = FakeEmbedder(held=asyncio.Event())
    many = World(OneCaller(caller()), embedder=embedder)
    body = {"model": EMBEDDER, "input": "x" * 40_000}
    waiting = [asyncio.ensure_future(many.ask(PATH, body)) for _ in range(6)]
    await until(lambda: len(embedder.asked) == 3)
    assert many.embedding.scheduler.queued == 3, "the rest waits in the gateway"
    many.app.pipeline.authenticator._caller = Caller("k2", "another", frozenset({Scope.INFER}))  # type: ignore[attr-defined]
    other = asyncio.ensure_future(many.ask(PATH, {"model": EMBEDDER, "input": "small"}))
    await until(lambda: len(embedder.asked) == 4)
    assert embedder.asked[-1][0] == ["small"], "it has overtaken the three"
    assert embedder.held is not None
    embedder.held.set()
    assert [answer.status for answer in await asyncio.gather(other, *waiting)] == [200] * 7


async def test_a_client_that_leaves_gives_back_its_place_and_is_charged() -> None:
    embedder = FakeEmbedder(held=asyncio.Event())
    world = World(embedder=embedder)
    leaves = asyncio.Event()
    raw = b'{"model": "minilm", "input": "' + b"x" * 400 + b'"}'
    left = asyncio.ensure_future(world.ask_in_parts(PATH, [raw], leaves=leaves))
    await until(lambda: embedder.asked)
    leaves.set()
    await left
    assert world.embedding.scheduler.in_flight == 0
    assert [(record.outcome, record.tokens) for record in world.records] == [("left", 100)]
