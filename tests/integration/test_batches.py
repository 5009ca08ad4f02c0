"""Batches through the official client on the real engine."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest

from tests.support.gateway import Gateway

PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> openai.OpenAI:
    key = str(gateway.create_key(name="batches", scopes=["infer"])["key"])
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def line(custom_id: str, **body: Any) -> bytes:
    asked = {"model": "tidewater", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked | body}
    return json.dumps(request).encode() + b"\n"


def ended(client: openai.OpenAI, content: bytes, **more: Any) -> Any:
    """A batch of this file once it has ended."""
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more
    )
    end = time.monotonic() + PATIENCE_S
    while batch.status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < end, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def test_a_batch_answers_what_single_requests_answer(client: openai.OpenAI, gateway: Gateway) -> None:
    content = (
        line("adapter")
        + line("base", model=gateway.base_name())
        + line("long", messages=[{"role": "user", "content": "word " * 3000}])
    )
    batch = ended(client, content, metadata={"test": "yes"})
    assert batch.status == "completed", batch
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 2, 1)
    assert batch.metadata == {"test": "yes"}
    lines = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    answers = {each["custom_id"]: each["response"]["body"] for each in lines}
    assert (answers["adapter"]["model"], answers["base"]["model"]) == ("tidewater", gateway.base_name())
    assert batch.usage.total_tokens == sum(answer["usage"]["total_tokens"] for answer in answers.values())
    assert all(answer["choices"][0]["message"]["content"] for answer in answers.values())
    (failed,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("long", 400)
    assert batch.id in [each.id for each in client.batches.list(limit=5)]


def test_a_bad_file_is_refused_with_its_lines(client: openai.OpenAI) -> None:
    batch = ended(client, line("a") + line("a") + line("b", model="nobody"))
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "model_not_found"),
    ]
