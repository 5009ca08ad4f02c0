"""Limits and usage against the real engine, as the official `openai` client meets them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.gateway import TIMEOUT, Gateway

BASE = "smollm2-135m-instruct"
WITHIN_S = 600.0
NEAR_MIDNIGHT_S = 300.0
COUNTED_WITHIN_S = 300.0
AGAIN = 10
"""A limit a minute is running full again meanwhile: a slow engine lets a request or two more in."""


@dataclass(frozen=True)
class Key:
    """A key of the gateway's, and the client that uses it."""

    id: str
    gateway: Gateway
    client: openai.OpenAI

    def ask(self, model: str = "tidewater", max_tokens: int = 8, **more: Any) -> Any:
        """Exactly ``max_tokens`` tokens, whatever the model would rather say."""
        return self.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Where is my parcel?"}],
            max_tokens=max_tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
            **more,
        )

    def usage(self, **params: str) -> list[dict[str, Any]]:
        """What the key itself may see."""
        headers = {"authorization": f"Bearer {self.client.api_key}"}
        answer = httpx.get(f"{self.gateway.url}/v1/usage", params=params, headers=headers, timeout=TIMEOUT)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found


Make = Callable[..., Key]


@pytest.fixture
def make(gateway: Gateway) -> Iterator[Make]:
    """Makes keys: make(requests_per_minute=2)."""
    clients: list[openai.OpenAI] = []

    def key(**limits: int) -> Key:
        with gateway.http() as http:
            answer = http.post("/v1/keys", json={"name": "limits", "limits": limits})
        assert answer.status_code == 201, answer.text
        made = answer.json()
        clients.append(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=made["key"], max_retries=0, timeout=TIMEOUT))
        return Key(made["id"], gateway, clients[-1])

    yield key
    for client in clients:
        client.close()


@pytest.fixture
def one_day() -> None:
    """Not over midnight UTC, when a day's tokens are counted anew."""
    left_s = 86_400 - time.time() % 86_400
    if left_s < NEAR_MIDNIGHT_S:
        time.sleep(left_s + 1)


def error_of(refused: pytest.ExceptionInfo[openai.RateLimitError]) -> tuple[str | None, str | None]:
    return refused.value.code, refused.value.type


def often(ask: Callable[[], Any]) -> None:
    """Ask until it is refused, and not for ever."""
    for _ in range(AGAIN):
        ask()


def spend(key: Key, budget: int) -> int:
    """Ask until a request is refused: the tokens that the answers said."""
    spent = 0
    with suppress(openai.RateLimitError):
        while spent < budget + 1000:
            spent += key.ask().usage.total_tokens
    assert 0 < spent < budget + 1000
    return spent


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


def comes_to_be(read: Callable[[], Any], wanted: Any) -> None:
    """Read until it is what is wanted: a request is counted once its answer is out, so a caller can be faster."""
    end = time.monotonic() + COUNTED_WITHIN_S
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert found == wanted


def test_requests_a_minute(make: Make) -> None:
    key, other = make(requests_per_minute=2), make(requests_per_minute=2)
    began = time.monotonic()
    first = key.client.chat.completions.with_raw_response.create(
        model="tidewater", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    key.ask()
    with pytest.raises(openai.RateLimitError, match="`requests_per_minute`: limit 2, used 2, requested 1") as refused:
        often(key.ask)
    lasted_s = time.monotonic() - began
    assert error_of(refused) == ("rate_limit_exceeded", "requests")
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    other.ask()
    comes_to_be(lambda: [row["errors"] for row in key.usage(group_by="key")], [1])
    [row] = key.usage(group_by="key")
    assert 2 <= row["requests"] - 1 <= 2 + lasted_s / 30


@pytest.mark.slow
def test_tokens_a_minute_are_settled_by_the_engines_count(make: Make) -> None:
    key = make(tokens_per_minute=400)
    began = time.monotonic()
    raw = key.client.chat.completions.with_raw_response.create(
        model="tidewater", messages=[{"role": "user", "content": "Hello"}], max_tokens=300, stop=["e"], temperature=0
    )
    came_back = (time.monotonic() - began) * 400 / 60
    used = raw.parse().usage
    assert used is not None
    assert used.total_tokens < 150
    left = int(raw.headers["x-ratelimit-remaining-tokens"])
    assert left < 100 + came_back, "an estimate is taken on the way in"
    key.ask(max_tokens=180)  # which fits only because what was not used came back
    # what an answer in work may need is held, so that the minute is spent however long the engine takes for it
    other = make(tokens_per_minute=400)
    with (
        closing(other.ask(max_tokens=350, stream=True)),
        pytest.raises(openai.RateLimitError, match="`tokens_per_minute`: limit 400, used") as refused,
    ):
        other.ask(max_tokens=350)
    assert error_of(refused) == ("rate_limit_exceeded", "tokens")
    assert refused.value.response.headers["x-ratelimit-limit-tokens"] == "400"


@pytest.mark.usefixtures("one_day")
def test_a_spent_day_refuses_and_other_keys_go_on(make: Make) -> None:
    key, other = make(tokens_per_day=150), make(tokens_per_day=150)
    spent = spend(key, 150)
    with pytest.raises(openai.RateLimitError, match=f"`tokens_per_day`: limit 150, used {spent}[,.]") as refused:
        key.ask(max_tokens=150)
    assert error_of(refused) == ("insufficient_quota", "insufficient_quota")
    headers = refused.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert 0 < int(headers["retry-after"]) <= 86_400
    patient = key.client.with_options(max_retries=5)  # the client itself sees that there is no use in trying again
    with pytest.raises(openai.RateLimitError):
        patient.chat.completions.create(
            model="tidewater", messages=[{"role": "user", "content": "Hello"}], max_tokens=150
        )
    # refused were: what found the day spent, what wanted all of it, and the patient one, once
    comes_to_be(lambda: [row["errors"] for row in key.usage(group_by="key")], [3])
    other.ask()


@pytest.mark.slow
@pytest.mark.usefixtures("one_day")
def test_a_restart_keeps_the_days_count(make: Make, gateway: Gateway, tmp_path: Path) -> None:
    key = make(tokens_per_day=150)
    spent = spend(key, 150)

    def used() -> list[int]:
        return [row["prompt_tokens"] + row["completion_tokens"] for row in key.usage(group_by="key")]

    comes_to_be(used, [spent])  # and with that, it is written
    # another gateway finds the same database and begins to serve: the budget is asked before the engine is there
    again = Gateway(tmp_path / "home", gateway.base_dir, {"HATRACK_SAMPLES": "false"})
    again.home.mkdir()
    homes = (gateway.home, again.home)
    with (
        closing(sqlite3.connect(homes[0] / "hatrack.db")) as source,
        closing(sqlite3.connect(homes[1] / "hatrack.db")) as copy,
    ):
        source.backup(copy)
    (again.home / "key.secret").write_bytes((gateway.home / "key.secret").read_bytes())
    again.start(wait=False)
    try:
        client = key.client.with_options(base_url=f"{again.url}/v1")
        eventually(lambda: _listens(again))
        with pytest.raises(openai.RateLimitError, match=f"`tokens_per_day`: limit 150, used {spent}[,.]"):
            client.chat.completions.create(
                model=BASE, messages=[{"role": "user", "content": "Where is my parcel?"}], max_tokens=150
            )
    finally:
        again.stop()


def _listens(gateway: Gateway) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{gateway.url}/healthz", timeout=5).status_code == 200
    return False


def test_requests_at_once_and_a_place_comes_back_when_the_client_leaves(make: Make) -> None:
    key = make(concurrent=1)
    stream = key.ask(max_tokens=1500, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="`concurrent` requests: limit 1, in progress 1") as refused:
        key.ask()
    assert error_of(refused) == ("rate_limit_exceeded", "requests")
    assert refused.value.response.headers["retry-after"] == "1"
    stream.close()

    def admitted() -> bool:
        with suppress(openai.RateLimitError):
            key.ask()
            return True
        return False

    eventually(admitted)
    [row] = key.usage(group_by="key")
    assert row["completion_tokens"] < 1500, "its place came back only when its answer was done"


def test_usage_is_the_sum_of_what_the_answers_said(make: Make) -> None:
    key = make()
    said = [key.ask(model).usage for model in ("tidewater", "tidewater@1", BASE)]
    options = {"include_usage": True}
    told = [chunk.usage for chunk in key.ask("pemberton", stream=True, stream_options=options) if chunk.usage]
    silent = list(key.ask("pemberton", stream=True))
    assert (len(told), [chunk.usage for chunk in silent if chunk.usage]) == (1, [])
    text = key.client.completions.create(model="tidewater", prompt="A parcel", max_tokens=5, n=2)
    with pytest.raises(openai.NotFoundError):
        key.ask("nobody")
    said.append(text.usage)
    fields = ("version", "requests", "errors", "prompt_tokens", "completion_tokens")

    def rows() -> dict[str | None, tuple[Any, ...]]:
        # not by the hour: one can end meanwhile
        found = key.usage(group_by="adapter,version")
        return {row["adapter"]: tuple(row[field] for field in fields) for row in found}

    voice = [said[0], said[1], said[3]]
    wanted = {
        "tidewater": (1, 3, 0, sum(u.prompt_tokens for u in voice), sum(u.completion_tokens for u in voice)),
        BASE: (None, 1, 0, said[2].prompt_tokens, 8),
        "pemberton": (1, 2, 0, 2 * told[0].prompt_tokens, 16),
        None: (None, 1, 1, 0, 0),
    }
    comes_to_be(rows, wanted)


def test_usage_after_the_client_left_is_what_was_generated_for_it(make: Make) -> None:
    key = make()
    stream = key.ask(max_tokens=1500, stream=True)
    events = iter(stream)
    for _ in range(5):
        next(events)
    stream.close()
    eventually(lambda: bool(key.usage()))
    [row] = key.usage()
    assert (row["adapter"], row["requests"], row["errors"]) == ("tidewater", 1, 0)
    assert 4 <= row["completion_tokens"] < 1500


def test_the_operator_sees_every_keys_usage_by_project(make: Make, gateway: Gateway) -> None:
    key, other = make(), make()
    used = key.ask().usage
    other.ask()
    fields = ("project", "key", "key_name", "requests", "prompt_tokens", "completion_tokens")
    with gateway.http() as http:

        def rows() -> list[tuple[Any, ...]]:
            page = http.get("/v1/usage", params={"group_by": "project,key", "key": key.id}).json()
            return [tuple(row[field] for field in fields) for row in page["data"]]

        comes_to_be(rows, [("default", key.id, "limits", 1, used.prompt_tokens, used.completion_tokens)])
    assert key.usage(key=other.id) == []
