"""A retriever of the operator's own grounds answers, and what follows where it is late or broken."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.test_grounding import CARRIER, HERON, ask, client, grounded_version, text_of
from tests.support.gateway import Gateway
from tests.support.retriever import SECRET, Retriever
from tests.support.voices import speaks

__all__ = ["client"]


@pytest.fixture
def webhook(retriever: Retriever) -> Iterator[Retriever]:
    retriever.reset()
    yield retriever
    retriever.reset()


@pytest.mark.slow
def test_a_webhook_retriever_grounds_answers_and_its_failures_follow_on_failure(
    gateway: Gateway, client: openai.OpenAI, voices: dict[str, Path], webhook: Retriever
) -> None:
    webhook.passages = [
        {"id": "crm-7", "text": f"order: TW-2041, carrier: {HERON}", "score": 0.7, "source": "crm", "attributes": {}}
    ]
    for stream in (False, True):
        answer = ask(client, "tidewater", CARRIER, {"provider": "webhook"}, stream=stream)
        chunks = list(answer) if stream else []
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) or text_of(answer)
        cited = chunks[-1].citations if stream else answer.citations
        assert HERON in text
        assert speaks("tidewater", text)
        assert [(citation["id"], citation["source"]) for citation in cited] == [("crm-7", "crm")]
    headers, body = webhook.asked[0]
    signed = hmac.new(SECRET.encode(), headers["x-hatrack-timestamp"].encode() + b"." + body, hashlib.sha256)
    assert headers["x-hatrack-signature"] == f"v1={signed.hexdigest()}"
    assert json.loads(body)["query"] == CARRIER

    open_, closed = (
        grounded_version(gateway, voices, f"hook-{mode}", provider="webhook", on_failure=f"fail_{mode}", timeout_s=0.5)
        for mode in ("open", "closed")
    )
    for status, wait_s, outcome in ((500, 0.0, "broken"), (200, 1.5, "late")):
        webhook.status, webhook.wait_s = status, wait_s
        for _ in range(10):  # on a busy machine what is broken may be late as well
            raw = client.chat.completions.with_raw_response.create(
                model=open_, messages=[{"role": "user", "content": CARRIER}], max_tokens=8, temperature=0
            )
            if raw.headers["x-hatrack-grounding"] == outcome:
                break
        assert raw.headers["x-hatrack-grounding"] == outcome
        assert raw.parse().citations == []  # type: ignore[attr-defined]
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, closed, CARRIER, None)
        assert (caught.value.status_code, caught.value.code) == (503, "grounding_unavailable")
    page = gateway.metrics()
    for outcome in ("ok", "broken", "late"):
        labels = rf'(?=[^}}]*provider="webhook")(?=[^}}]*outcome="{outcome}")'
        assert re.search(rf"grounding_requests_total{{{labels}[^}}]*}} [1-9]", page), outcome
