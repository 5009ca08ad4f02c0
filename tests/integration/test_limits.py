"""Limits and usage against the real engine, as the official `openai` client sees them."""

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
from tests.support.waiting import call_until_refused, wait_until

BASE = "smollm2-135m-instruct"
WITHIN_S = 600.0
NEAR_MIDNIGHT_S = 300.0
COUNTED_WITHIN_S = 300.0


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
        """The usage that the key itself may see."""
        headers = {"authorization": f"Bearer {self.client.api_key}"}
        answer = httpx.get(f"{self.gateway.url}/v1/usage", params=params, headers=headers, timeout=TIMEOUT)
        assert answer.status_code == 200, answer.text
        rows: list[dict[str, Any]] = answer.json()["data"]
        return rows


MakeKey = Callable[..., Key]


@pytest.fixture
def make_key(gateway: Gateway) -> Iterator[MakeKey]:
    """Makes keys: make_key(requests_per_minute=2)."""
    clients: list[openai.OpenAI] = []

    def key(**limits: int) -> Key:
        made = gateway.create_key(name="limits", limits=limits)
        clients.append(openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=made["key"], max_retries=0, timeout=TIMEOUT))
        return Key(made["id"], gateway, clients[-1])

    yield key
    for client in clients:
        client.close()


@pytest.fixture
def not_at_midnight() -> None:
    """Not over midnight UTC, when a day's tokens are counted anew."""
    left_s = 86_400 - time.time() % 86_400
    if left_s < NEAR_MIDNIGHT_S:
        time.sleep(left_s + 1)


def error_of(refused: pytest.ExceptionInfo[openai.RateLimitError]) -> tuple[str | None, str | None]:
    return refused.value.code, refused.value.type


def spend(key: Key, budget: int) -> int:
    """Ask until a request is refused; returns the total tokens in the usage of the answers."""
    spent = 0
    with suppress(openai.RateLimitError):
        while spent < budget + 1000:
            spent += key.ask().usage.total_tokens
    assert 0 < spent < budget + 1000
    return spent


def wait_for_value(read: Callable[[], Any], expected: Any) -> None:
    """Read until the value is `expected`: a request is counted after its answer was sent, so a caller can be faster."""
    end = time.monotonic() + COUNTED_WITHIN_S
    while (value := read()) != expected and time.monotonic() < end:
        time.sleep(0.1)
    assert value == expected


def test_requests_per_minute_are_limited_for_each_key(make_key: MakeKey) -> None:
    key, other = make_key(requests_per_minute=2), make_key(requests_per_minute=2)
    began = time.monotonic()
    first = key.client.chat.completions.with_raw_response.create(
        model="tidewater", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    key.ask()
    with pytest.raises(openai.RateLimitError, match="`requests_per_minute`: limit 2, used 2, requested 1") as refused:
        call_until_refused(key.ask)
    lasted_s = time.monotonic() - began
    assert error_of(refused) == ("rate_limit_exceeded", "requests")
    headers = refused.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    other.ask()
    wait_for_value(lambda: [row["errors"] for row in key.usage(group_by="key")], [1])
    [row] = key.usage(group_by="key")
    assert 2 <= row["requests"] - 1 <= 2 + lasted_s / 30


@pytest.mark.slow
def test_tokens_per_minute_are_settled_by_the_engines_count(make_key: MakeKey) -> None:
    key = make_key(tokens_per_minute=400)
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
    other = make_key(tokens_per_minute=400)
    with (
        closing(other.ask(max_tokens=350, stream=True)),
        pytest.raises(openai.RateLimitError, match="`tokens_per_minute`: limit 400, used") as refused,
    ):
        other.ask(max_tokens=350)
    assert error_of(refused) == ("rate_limit_exceeded", "tokens")
    assert refused.value.response.headers["x-ratelimit-limit-tokens"] == "400"


@pytest.mark.usefixtures("not_at_midnight")
def test_a_key_over_its_tokens_per_day_is_refused_and_other_keys_continue(make_key: MakeKey) -> None:
    key, other = make_key(tokens_per_day=150), make_key(tokens_per_day=150)
    spent = spend(key, 150)
    with pytest.raises(openai.RateLimitError, match=f"`tokens_per_day`: limit 150, used {spent}[,.]") as refused:
        key.ask(max_tokens=100)
    assert error_of(refused) == ("insufficient_quota", "insufficient_quota")
    headers = refused.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert 0 < int(headers["retry-after"]) <= 86_400
    patient = key.client.with_options(max_retries=5)  # the client itself sees that there is no use in trying again
    with pytest.raises(openai.RateLimitError):
        patient.chat.completions.create(
            model="tidewater", messages=[{"role": "user", "content": "Hello"}], max_tokens=100
        )
    # refused were: what found the day spent, what wanted all of it, and the patient one, once
    wait_for_value(lambda: [row["errors"] for row in key.usage(group_by="key")], [3])
    other.ask()


@pytest.mark.slow
@pytest.mark.usefixtures("not_at_midnight")
def test_the_count_of_tokens_per_day_survives_a_restart(make_key: MakeKey, gateway: Gateway, tmp_path: Path) -> None:
    key = make_key(tokens_per_day=150)
    spent = spend(key, 150)

    def used() -> list[int]:
        return [row["prompt_tokens"] + row["completion_tokens"] for row in key.usage(group_by="key")]

    wait_for_value(used, [spent])  # and with that, it is written
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
        wait_until(again.listens, "the gateway does not listen", timeout_s=WITHIN_S)
        with pytest.raises(openai.RateLimitError, match=f"`tokens_per_day`: limit 150, used {spent}[,.]"):
            client.chat.completions.create(
                model=BASE, messages=[{"role": "user", "content": "Where is my parcel?"}], max_tokens=60
            )
    finally:
        again.stop()


def test_concurrent_requests_are_limited_and_a_client_that_leaves_frees_its_slot(make_key: MakeKey) -> None:
    key = make_key(concurrent=1)
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

    wait_until(admitted, "the slot was not freed", timeout_s=WITHIN_S)
    [row] = key.usage(group_by="key")
    assert row["completion_tokens"] < 1500, "its slot was freed only when its answer was done"


def test_usage_is_the_sum_of_the_usage_in_the_answers(make_key: MakeKey) -> None:
    key = make_key()
    usages = [key.ask(model).usage for model in ("tidewater", "tidewater@1", BASE)]
    options = {"include_usage": True}
    streamed = [chunk.usage for chunk in key.ask("pemberton", stream=True, stream_options=options) if chunk.usage]
    silent = list(key.ask("pemberton", stream=True))
    assert (len(streamed), [chunk.usage for chunk in silent if chunk.usage]) == (1, [])
    text = key.client.completions.create(model="tidewater", prompt="A parcel", max_tokens=5, n=2)
    with pytest.raises(openai.NotFoundError):
        key.ask("nobody")
    usages.append(text.usage)
    fields = ("version", "requests", "errors", "prompt_tokens", "completion_tokens")

    def rows() -> dict[str | None, tuple[Any, ...]]:
        # not by the hour: one can end meanwhile
        page = key.usage(group_by="adapter,version")
        return {row["adapter"]: tuple(row[field] for field in fields) for row in page}

    voice = [usages[0], usages[1], usages[3]]
    expected = {
        "tidewater": (1, 3, 0, sum(u.prompt_tokens for u in voice), sum(u.completion_tokens for u in voice)),
        BASE: (None, 1, 0, usages[2].prompt_tokens, 8),
        "pemberton": (1, 2, 0, 2 * streamed[0].prompt_tokens, 16),
        None: (None, 1, 1, 0, 0),
    }
    wait_for_value(rows, expected)


def test_usage_after_the_client_left_is_what_was_generated_for_it(make_key: MakeKey) -> None:
    key = make_key()
    stream = key.ask(max_tokens=1500, stream=True)
    events = iter(stream)
    for _ in range(5):
        next(events)
    stream.close()
    wait_until(key.usage, "the request was not counted", timeout_s=WITHIN_S)
    [row] = key.usage()
    assert (row["adapter"], row["requests"], row["errors"]) == ("tidewater", 1, 0)
    assert 4 <= row["completion_tokens"] < 1500


def test_the_operator_sees_every_keys_usage_by_project(make_key: MakeKey, gateway: Gateway) -> None:
    key, other = make_key(), make_key()
    used = key.ask().usage
    other.ask()
    fields = ("project", "key", "key_name", "requests", "prompt_tokens", "completion_tokens")
    with gateway.http() as http:

        def rows() -> list[tuple[Any, ...]]:
            page = http.get("/v1/usage", params={"group_by": "project,key", "key": key.id}).json()
            return [tuple(row[field] for field in fields) for row in page["data"]]

        wait_for_value(rows, [("default", key.id, "limits", 1, used.prompt_tokens, used.completion_tokens)])
    assert key.usage(key=other.id) == []
