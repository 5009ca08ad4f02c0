"""The operator's teachers: what is sent to the endpoint, and what callers hear of its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.requests import TeacherBody
from tests.support.http import serving
from tests.unit.trainer.runs.test_database import new_run, opened
from trainer.database import Database
from trainer.errors import InternalError, RequestError
from trainer.evaluate.endpoints import OperatorEndpoints
from trainer.evaluate.teachers import Teachers
from trainer.http import CurrentCaller
from trainer.runs import outside, records
from trainer.runs.outside import NO_RUN, Payer

CALLER = CurrentCaller("default", "key_a")
BODY = TeacherBody.model_validate({"messages": [{"role": "user", "content": "q"}], "max_tokens": 7})
COMPLETION = {
    "model": "large-1-0613",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await opened(tmp_path / "jobs.db")
    yield database
    await database.close()


class Endpoint:
    """An outside endpoint with one answer; ``requests`` has what it was sent."""

    def __init__(self, status: int = 200, body: Any = COMPLETION, **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers
        self.requests: list[tuple[str, str, dict[str, Any]]] = []

    def answer(self, _method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        self.requests.append((path, key, json.loads(body)))
        return self.status, json.dumps(self.body).encode(), self.headers


@contextmanager
def offered(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, database: Database, **more: Any) -> Iterator[Teachers]:
    monkeypatch.setenv("BIG_KEY", "sk-secret")
    with serving(endpoint.answer) as url:
        big = {"url": url, "model": "large-1", "key_env": "BIG_KEY", "teacher": True, "price_input": 2, **more}
        settings = {"endpoints": {"big": big, "judging": {"url": url, "model": "large-1"}}}
        yield Teachers(OperatorEndpoints.model_validate(settings), database)


@pytest.mark.parametrize("stated", [None, {}, {"prompt_tokens": 3}])
async def test_what_an_endpoint_does_not_state_of_its_tokens_is_not_passed_on_as_none(
    monkeypatch: pytest.MonkeyPatch, database: Database, stated: dict[str, int] | None
) -> None:
    with offered(Endpoint(body=COMPLETION | {"usage": stated}), monkeypatch, database) as teachers:
        answer = await teachers.answer(CALLER, "big", BODY)
        await teachers.close()
    assert answer["usage"] is None


async def test_a_teacher_answers_with_the_operators_key(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    endpoint = Endpoint()
    with offered(
        endpoint, monkeypatch, database, max_tokens_field="max_completion_tokens", fields={"top_p": 0.9}
    ) as teachers:
        assert [teacher["id"] for teacher in teachers.list()["data"]] == ["big"]
        assert teachers.list()["data"][0] == {
            "object": "teacher",
            "id": "big",
            "model": "large-1",
            "price_input": 2.0,
            "price_output": None,
        }
        answer = await teachers.answer(CALLER, "big", BODY.model_copy(update={"temperature": 0.5}))
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


async def test_what_a_teacher_charges_is_on_the_bill_of_who_asks(
    monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    await database.run(lambda db: records.add(db, new_run(1), None))
    with offered(Endpoint(), monkeypatch, database, price_output=10) as teachers:
        for key in ("key_a", "key_a", "j"):  # the last is a run's own
            await teachers.answer(CurrentCaller("default", key), "big", BODY)
        await teachers.close()
    charged = await database.run(lambda db: outside.recorded(db, 0, 2**40))
    of_key = [each for each in charged if each.payer == Payer("default", "key_a", NO_RUN)]
    of_run = [each for each in charged if each.payer == Payer("default", "k", "ftjob-1")]
    assert len(of_key) + len(of_run) == len(charged)
    assert sum(each.requests for each in of_key) == 2
    assert sum(each.money for each in of_key) == pytest.approx(2 * (3 * 2 + 2 * 10) / 1e6)
    assert [(each.requests, each.prompt_tokens, each.completion_tokens, each.unpriced) for each in of_run] == [
        (1, 3, 2, 0)
    ]


async def test_what_an_endpoint_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    with offered(Endpoint(503, refusal("overloaded")), monkeypatch, database) as teachers:
        with pytest.raises(RequestError):
            await teachers.answer(CALLER, "big", BODY)
        await teachers.close()
    assert await database.run(lambda db: outside.recorded(db, 0, 2**40)) == []


async def test_an_answer_whose_charge_cannot_be_recorded_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise InternalError("the disk has gone")

    monkeypatch.setattr(outside, "add", broken)
    with offered(Endpoint(), monkeypatch, database) as teachers:
        answer = await teachers.answer(CALLER, "big", BODY)
        await teachers.close()
    assert answer["choices"][0]["message"]["content"] == "a"
    assert "what the teacher big charged could not be recorded" in caplog.text


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
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
    endpoint: Endpoint,
    status: int,
    code: str,
    retry_after_s: int | None,
) -> None:
    with offered(endpoint, monkeypatch, database) as teachers:
        with pytest.raises(RequestError) as caught:
            await teachers.answer(CALLER, "big", BODY)
        await teachers.close()
    refused = caught.value
    assert (refused.status, refused.shown_code, refused.retry_after_s) == (status, code, retry_after_s)
    assert "sk-secret" not in refused.message
    assert len(endpoint.requests) == 1  # who asks decides when to come back


async def test_what_is_not_offered_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    endpoint = Endpoint()
    with offered(endpoint, monkeypatch, database, send_temperature=False) as teachers:
        for name in ("judging", "nobody"):
            with pytest.raises(RequestError) as caught:
                await teachers.answer(CALLER, name, BODY)
            assert (caught.value.status, caught.value.shown_code) == (404, "teacher_not_found")
        with pytest.raises(RequestError) as caught:
            await teachers.answer(CALLER, "big", BODY.model_copy(update={"temperature": 0.0}))
        assert (caught.value.shown_code, caught.value.param) == ("unsupported_value", "temperature")
    assert endpoint.requests == []


async def test_a_teacher_that_cannot_be_reached_is_busy(monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    with offered(Endpoint(), monkeypatch, database) as teachers:
        pass
    with pytest.raises(RequestError) as caught:
        await teachers.answer(CALLER, "big", BODY)
    await teachers.close()
    assert caught.value.shown_code == "teacher_busy"


def test_a_teacher_needs_a_model() -> None:
    with pytest.raises(ValueError, match="a teacher needs a `model`"):
        OperatorEndpoints.model_validate({"endpoints": {"big": {"url": "http://a", "teacher": True}}})
