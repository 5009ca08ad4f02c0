"""Events in, events out; and what the engine's errors become."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import AdapterNotFinite, BadGateway, BadRequest, EngineUnavailable, HatrackError, NotFound
from service.inference import relay as relays
from service.inference.completions import ChatRelay
from service.inference.relay import Renamer, TokenUsage, engine_error, find_usage
from service.registry.catalog import Target
from tests.unit.service.inference.fakes import DIGESTS, DONE, event, token, usage_event

VOICE = Target("voice", DIGESTS[3], adapter="voice", version=3, digest=DIGESTS[3])
SMOL = Target("smol", "smol")
TRICKY = f'"model":"{DIGESTS[3]}" data: [DONE]\n\ndata: {{"error": 1}} "usage":{{"prompt_tokens":999}} "choices":[]'


def relay(*, show_usage: bool = False) -> ChatRelay:
    return ChatRelay(Renamer(VOICE), show_usage=show_usage)


STREAM = [token("Ahoy"), token(TRICKY), token(" matey"), usage_event(), DONE]


@given(cuts=st.lists(st.integers(0, sum(map(len, STREAM))), max_size=12), show=st.booleans())
def test_pieces_cut_anywhere_give_the_same_events(cuts: list[int], show: bool) -> None:
    whole = b"".join(STREAM)
    edges = [0, *sorted(cuts), len(whole)]
    found = relay(show_usage=show)
    out = b"".join(found.feed(whole[a:b]) for a, b in pairwise(edges))
    shown = [token("Ahoy", "voice"), token(TRICKY, "voice"), token(" matey", "voice")]
    assert out == b"".join([*shown, *([usage_event("voice")] if show else []), DONE])
    assert found.done
    assert found.error is None
    assert found.counted() == TokenUsage(11, 5, 4)


def test_a_whole_chunk_comes_out_at_once() -> None:
    found = relay()
    assert found.feed(token("a")) == token("a", "voice")
    assert found.feed(token("b")[:-1]) == b""
    assert found.feed(b"\n") == token("b", "voice")


def test_an_error_event_ends_the_stream_and_is_not_passed_on() -> None:
    found = relay()
    bad = b'data: {"error": {"message": "m", "code": 500}}\n\n'
    assert found.feed(token("a") + bad + DONE) == token("a", "voice")
    assert found.error is not None
    assert orjson.loads(found.error)["error"]["code"] == 500
    assert not found.done
    assert found.feed(token("b")) == b""


def test_a_stream_that_was_cut_is_counted_by_its_events() -> None:
    found = relay()
    assert found.counted() is None
    found.feed(token("a") + token("b") + token("c")[:20])
    assert found.counted() == TokenUsage(completion_tokens=2, exact=False)


def test_usage_is_found_in_an_answer_and_not_in_its_text() -> None:
    body = orjson.dumps({"choices": [{"text": TRICKY}], "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    assert find_usage(body) == TokenUsage(prompt_tokens=3)
    assert find_usage(orjson.dumps({"choices": [{"text": TRICKY}]})) is None


def test_usage_is_not_searched_in_what_stands_behind_it() -> None:
    logprobs = b',"prompt_logprobs":[' + b"null," * 1000 + b'{"1":{"prompt_tokens":9,"completion_tokens":9}}]}'
    assert find_usage(b'{"usage":{"prompt_tokens":3}' + logprobs) == TokenUsage(prompt_tokens=3)


def test_a_label_is_written_as_json() -> None:
    odd = Target('a"b\\', DIGESTS[1], digest=DIGESTS[1])
    renamed = Renamer(odd).rename(event(model=DIGESTS[1], choices=[]))
    assert orjson.loads(renamed[6:])["model"] == 'a"b\\'


def engine_body(message: str = "no", kind: str = "BadRequestError", code: int | str = 400, param: str = "") -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param or None, "code": code}})


@pytest.mark.parametrize(
    ("status", "body", "target", "kind", "code"),
    [
        (400, engine_body(), VOICE, BadRequest, "invalid_value"),
        (400, engine_body(param="input_tokens"), VOICE, BadRequest, "context_length_exceeded"),
        (200, engine_body(code=400), VOICE, BadRequest, "invalid_value"),
        (500, engine_body(kind="adapter_not_finite", code=500), VOICE, AdapterNotFinite, "adapter_not_finite"),
        (200, engine_body(kind="x", code="adapter_not_finite"), VOICE, AdapterNotFinite, "adapter_not_finite"),
        (400, engine_body(kind="adapter_unloadable"), VOICE, BadGateway, "adapter_unloadable"),
        (500, engine_body(kind="engine_not_finite"), SMOL, BadGateway, "engine_not_finite"),
        (500, engine_body(kind="InternalServerError", code=500), VOICE, BadGateway, "engine_error"),
        (500, b"<html>", SMOL, BadGateway, "engine_error"),
        (200, b"[1]", SMOL, BadGateway, "engine_error"),
        (401, engine_body(), SMOL, BadGateway, "engine_error"),
        (404, engine_body(), VOICE, BadGateway, "adapter_unloadable"),
        (404, engine_body(), SMOL, NotFound, "not_found"),
        (503, engine_body(), SMOL, EngineUnavailable, "engine_unavailable"),
    ],
)
def test_engine_errors(status: int, body: bytes, target: Target, kind: type[HatrackError], code: str) -> None:
    error = engine_error(status, body, target, "/v1/completions")
    assert type(error) is kind
    assert error.code == code


def test_a_message_of_the_engine_shows_the_label_and_not_the_digest() -> None:
    error = engine_error(400, engine_body(f"model {DIGESTS[3]} is busy", param="n"), VOICE, "/v1/completions")
    assert (error.message, error.param) == ("model voice is busy", "n")


def test_a_base_that_makes_no_embeddings() -> None:
    error = engine_error(404, b'{"detail":"Not Found"}', SMOL, "/v1/embeddings")
    assert (error.status, error.code, error.param) == (404, "model_not_embedding", "model")


def test_a_large_event_is_searched_once_and_an_endless_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    large = token("y" * 500_000)
    found = relay()
    pieces = [large[at : at + 10] for at in range(0, len(large), 10)]
    assert b"".join(found.feed(piece) for piece in pieces) == token("y" * 500_000, "voice")
    monkeypatch.setattr("service.inference.relay.MAX_EVENT_BYTES", 1000)
    assert {found.feed(b"z" * 10) for _ in range(100)} == {b""}
    with pytest.raises(BadGateway, match="without an end"):
        found.feed(b"z")


def test_requests_for_one_name_share_a_renamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MAX_RENAMERS", 2)
    monkeypatch.setattr(relays, "_RENAMERS", {})
    renamer = relays.renamer_for(VOICE)
    assert relays.renamer_for(Target("voice", DIGESTS[3])) is renamer
    for target in (SMOL, Target("voice@3", DIGESTS[3]), Target("voice", DIGESTS[1]), VOICE):
        renamed = relays.renamer_for(target).rename(event(model=target.engine_model))
        assert renamed == event(model=target.label)
        assert len(relays._RENAMERS) <= 2
