"""The operator's teachers: what is sent to the endpoint, and what callers hear of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from adapters.protocol.requests import TeacherBody
from tests.support.http import serving
from trainer.errors import RequestError
from trainer.evaluate.endpoints import OperatorEndpoints
from trainer.evaluate.teachers import Teachers

BODY = TeacherBody.model_validate({"messages": [{"role": "user", "content": "q"}], "max_tokens": 7})
COMPLETION = {
    "model": "large-1-0613",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


class Endpoint:
    """An outside endpoint with one answer; ``requests`` has what it was sent."""

    def __init__(self, status: int = 200, body: Any = COMPLETION, **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers
        self.requests: list[tuple[str, str, dict[str, Any]]] = []

    def answer(self, _method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        self.requests.append((path, key, json.loads(body)))
        return self.status, json.dumps(self.body).encode(), self.headers


@contextmanager
def offered(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Iterator[Teachers]:
    monkeypatch.setenv("BIG_KEY", "sk-secret")
    with serving(endpoint.answer) as url:
        big = {"url": url, "model": "large-1", "key_env": "BIG_KEY", "teacher": True, "price_input": 2, **more}
        settings = {"endpoints": {"big": big, "judging": {"url": url, "model": "large-1"}}}
        yield Teachers(OperatorEndpoints.model_validate(settings))


async def test_a_teacher_answers_with_the_operators_key(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    with offered(endpoint, monkeypatch, max_tokens_field="max_completion_tokens", fields={"top_p": 0.9}) as teachers:
        assert [teacher["id"] for teacher in teachers.list()["data"]] == ["big"]
        assert teachers.list()["data"][0] == {
            "object": "teacher",
            "id": "big",
            "model": "large-1",
            "price_input": 2.0,
            "price_output": None,
        }
        answer = await teachers.answer("big", BODY.model_copy(update={"temperature": 0.5}))
        await teachers.close()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "a", "refusal": None}
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert endpoint.requests == [
        (
            "/v1/chat/completions",
            "sk-secret",
            {
                "model": "large-1",
                "messages": [{"role": "user", "content": "q"}],
                "max_completion_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
            },
        )
    ]


def refusal(code: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    ("endpoint", "status", "code", "retry_after_s"),
    [
        (Endpoint(429, refusal("rate_limit_exceeded"), **{"retry-after": "7"}), 429, "teacher_busy", 7),
        (Endpoint(503, refusal("overloaded")), 429, "teacher_busy", 2),
        (Endpoint(400, refusal("content_filter")), 422, "teacher_refused", None),
        (Endpoint(413, refusal("too_long")), 422, "teacher_refused", None),
        (Endpoint(401, refusal("invalid_api_key", "wrong key: sk-secret")), 502, "teacher_failed", None),
        (Endpoint(404, refusal("model_not_found")), 502, "teacher_failed", None),
        (Endpoint(429, refusal("insufficient_quota")), 502, "teacher_failed", None),
        (Endpoint(200, {"choices": []}), 502, "teacher_failed", None),
        (Endpoint(200, "text"), 502, "teacher_failed", None),
    ],
)
async def test_what_an_endpoint_refuses_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, status: int, code: str, retry_after_s: int | None
) -> None:
    with offered(endpoint, monkeypatch) as teachers:
        with pytest.raises(RequestError) as caught:
            await teachers.answer("big", BODY)
        await teachers.close()
    refused = caught.value
    assert (refused.status, refused.shown_code, refused.retry_after_s) == (status, code, retry_after_s)
    assert "sk-secret" not in refused.message
    assert len(endpoint.requests) == 1  # who asks decides when to come back


async def test_what_is_not_offered_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    with offered(endpoint, monkeypatch, send_temperature=False) as teachers:
        for name in ("judging", "nobody"):
            with pytest.raises(RequestError) as caught:
                await teachers.answer(name, BODY)
            assert (caught.value.status, caught.value.shown_code) == (404, "teacher_not_found")
        with pytest.raises(RequestError) as caught:
            await teachers.answer("big", BODY.model_copy(update={"temperature": 0.0}))
        assert (caught.value.shown_code, caught.value.param) == ("unsupported_value", "temperature")
    assert endpoint.requests == []


async def test_a_teacher_that_cannot_be_reached_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    with offered(Endpoint(), monkeypatch) as teachers:
        pass
    with pytest.raises(RequestError) as caught:
        await teachers.answer("big", BODY)
    await teachers.close()
    assert caught.value.shown_code == "teacher_busy"


def test_a_teacher_needs_a_model() -> None:
    with pytest.raises(ValueError, match="a teacher needs a `model`"):
        OperatorEndpoints.model_validate({"endpoints": {"big": {"url": "http://a", "teacher": True}}})
