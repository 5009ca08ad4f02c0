"""A version without weights on the real engine: the base answers with its prompt, and nothing is loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway

PROMPT = "You answer for the shop Tidewater in one short sentence."
EXAMPLES = [{"user": "Do you ship abroad?", "assistant": "Aye, to every harbour in Europe."}]
QUESTION = [{"role": "user", "content": "Do you gift wrap?"}]
WHOLE = [
    {"role": "system", "content": PROMPT},
    {"role": "user", "content": EXAMPLES[0]["user"]},
    {"role": "assistant", "content": EXAMPLES[0]["assistant"]},
    *QUESTION,
]
LIVE = "/v1/adapters/support/aliases/live"
RUNNING, COLD_LOADS = 'hatrack_adapter_requests_running{adapter="support"', "hatrack_engine_cold_loads_total"
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client of the gateway, which has `support@1` without weights."""
    with gateway.http() as client:
        settings = {"system_prompt": PROMPT, "examples": EXAMPLES, "sampling": {"temperature": 0}}
        pushed = client.post("/v1/adapters", json={"name": "support", "settings": settings})
        assert pushed.status_code == 201, pushed.text
        assert (pushed.json()["state"], pushed.json()["proof"]["kind"]) == ("ready", "settings")
        yield client
        assert client.delete("/v1/adapters/support?force=true").status_code == 204


def tokens(http: httpx.Client, model: str, messages: list[dict[str, str]]) -> list[int]:
    answer = http.post("/v1/tokenize", json={"model": model, "messages": messages})
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["tokens"]
    return found


def metrics(gateway: Gateway, *names: str) -> list[float]:
    """The sum of each metric's series, of one scrape; a name may end with the first label. Asked again where one is
    missing: on a busy machine a scrape omits late parts."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        lines = gateway.metrics().splitlines()
        found = [[line for line in lines if line.startswith((f"{name} ", f"{name}{{", f"{name},"))] for name in names]
        if all(found):
            return [sum(float(line.split()[-1]) for line in series) for series in found]
        assert time.monotonic() < deadline, (names, lines)


def asked(http: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-hatrack-adapter"] == "support@1"
    assert "x-hatrack-digest" not in answer.headers
    return answer


def while_streaming(gateway: Gateway, http: httpx.Client) -> list[float]:
    """The version's requests in the engine and the slots in use, in the middle of a stream, which is then left."""
    body = {"model": "support", "messages": QUESTION, "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        assert stream.headers["x-hatrack-adapter"] == "support@1"
        lines = stream.iter_lines()  # held, as an iterator that is dropped closes the stream
        first = next(line for line in lines if line)
        assert json.loads(first.removeprefix("data: "))["model"] == "support"
        return metrics(gateway, RUNNING, "hatrack_engine_slots_in_use")


def test_every_dialect_reads_the_prompt_and_nothing_is_loaded(gateway: Gateway, http: httpx.Client) -> None:
    loaded, [cold] = gateway.loaded(), metrics(gateway, COLD_LOADS)
    whole = tokens(http, gateway.base_name(), WHOLE)
    assert tokens(http, "support", QUESTION) == whole
    assert http.get("/v1/adapters/support/versions/1").json()["proof"]["prompt_tokens"] < len(whole)

    chat = asked(http, "/v1/chat/completions", {"model": "support", "messages": QUESTION, "max_tokens": 4}).json()
    assert (chat["model"], chat["usage"]["prompt_tokens"]) == ("support", len(whole))
    body: dict[str, Any] = {"model": "support@1", "input": QUESTION[0]["content"], "max_output_tokens": 4}
    response = asked(http, "/v1/responses", body).json()
    assert (response["model"], response["usage"]["input_tokens"]) == ("support@1", len(whole))
    message = asked(http, "/v1/messages", {"model": "support", "messages": QUESTION, "max_tokens": 4}).json()
    assert (message["model"], message["usage"]["input_tokens"]) == ("support", len(whole))
    counted = asked(http, "/v1/messages/count_tokens", {"model": "support", "messages": QUESTION}).json()
    assert counted["input_tokens"] == len(whole)

    assert while_streaming(gateway, http) == [1.0, 0.0]
    assert gateway.loaded() == loaded
    assert metrics(gateway, COLD_LOADS) == [cold]
    usage = http.get("/v1/usage", params={"group_by": "version", "adapter": "support"}).json()
    assert {row["version"] for row in usage["data"]} <= {1}


@pytest.mark.slow
def test_a_lora_takes_its_place_and_no_caller_changes_a_line(
    gateway: Gateway, http: httpx.Client, voices: dict[str, Path]
) -> None:
    pushed = gateway.push("support", voices["tidewater"])
    assert (pushed.status_code, pushed.json()["version"], pushed.json()["aliases"]) == (201, 2, []), pushed.text
    digest = pushed.json()["digest"]

    def served() -> tuple[str, str | None]:
        answer = gateway.chat("support", "Do you gift wrap?", max_tokens=1)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "support"
        return answer.headers["x-hatrack-adapter"], answer.headers.get("x-hatrack-digest")

    assert served() == ("support@1", None)
    split = http.put(LIVE, json={"split": {"1": 1, "2": 1}})
    assert split.status_code == 200, split.text
    # all of one version: 1 in 2 million
    assert {served() for _ in range(22)} == {("support@1", None), ("support@2", digest)}
    assert http.put(LIVE, json={"version": 2}).status_code == 200
    assert served() == ("support@2", digest)
    assert http.post(f"{LIVE}/rollback").status_code == 200
    assert http.post(f"{LIVE}/rollback").json()["version"] == 1
    assert served() == ("support@1", None)
