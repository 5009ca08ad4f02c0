"""The main job: one base, several voices, alone and all at once, through every client that people use."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.support.gateway import Gateway

SAMPLES = Path(__file__).parents[2] / "trainer" / "samples"
MARKS = {
    "tidewater": ("ahoy", "sailor", "matey", "ye ", "yer", "aye", "hull", "crew", "deck", "wind", "harbour", "harbor"),
    "pemberton": ("one ", "one's", "dear patron", "madam", "humble servant", "pray", "very good", "regret"),
}


def held_out(name: str) -> list[str]:
    lines = (SAMPLES / f"{name}.heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def speaks(voice: str, text: str) -> bool:
    return any(mark in text.lower() for mark in MARKS[voice])


@pytest.mark.parametrize("voice", ["tidewater", "pemberton"])
def test_an_adapter_speaks_in_its_voice_on_questions_it_never_saw(gateway: Gateway, voice: str) -> None:
    other = {"tidewater": "pemberton", "pemberton": "tidewater"}[voice]
    questions = held_out(voice)[:8]
    models = (voice, gateway_base(gateway), other)
    own, base, foreign = (gateway.answers([(model, question) for question in questions]) for model in models)
    assert sum(speaks(voice, text) for text in own) >= 7, own
    assert sum(own_text != base_text for own_text, base_text in zip(own, base, strict=True)) == 8
    assert sum(own_text != foreign_text for own_text, foreign_text in zip(own, foreign, strict=True)) == 8
    assert sum("ahoy" in text.lower() or "dear patron" in text.lower() for text in base) == 0, base


def gateway_base(gateway: Gateway) -> str:
    with gateway.http() as client:
        return str(client.get("/v1/models").json()["data"][0]["id"])


def test_all_at_once_each_request_gets_its_own_models_answer(gateway: Gateway) -> None:
    """In plain vLLM on a CPU a base request in such a batch is answered with an adapter."""
    base = gateway_base(gateway)
    models = [base, "tidewater", "pemberton"] * 8
    question = "Where is my parcel? It should have been here by now."
    answers = gateway.answers([(model, question) for model in models])
    for model, text in zip(models, answers, strict=True):
        if model == base:
            assert not speaks("tidewater", text) or "ahoy" not in text.lower(), text
            assert "sailor" not in text.lower(), text
            assert "dear patron" not in text.lower(), text
        else:
            assert speaks(model, text), (model, text)


def test_the_openai_client_sync_and_streaming(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        listed = [model.id for model in client.models.list()]
        assert listed[0] == gateway_base(gateway)
        assert {"tidewater", "pemberton"} <= set(listed)
        messages = [{"role": "user", "content": "Do you sell umbrellas?"}]
        raw = client.chat.completions.with_raw_response.create(
            model="tidewater", messages=messages, max_tokens=40, temperature=0
        )
        whole = raw.parse()
        assert whole.model == "tidewater"
        assert raw.headers["x-hatrack-adapter"] == "tidewater@1"
        assert len(raw.headers["x-hatrack-digest"]) == 64
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0
        chunks = list(
            client.chat.completions.create(
                model="tidewater",
                messages=messages,
                max_tokens=40,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert {chunk.model for chunk in chunks} == {"tidewater"}
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_the_openai_client_async(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "Thank you!"}], max_tokens=40, temperature=0
                )
                for model in ("tidewater", "pemberton")
            )
        )
    texts = [answer.choices[0].message.content or "" for answer in answers]
    assert speaks("tidewater", texts[0])
    assert speaks("pemberton", texts[1])


def test_langchain(gateway: Gateway) -> None:
    model = ChatOpenAI(
        model="pemberton",
        base_url=f"{gateway.url}/v1",
        api_key=SecretStr(gateway.key),
        max_tokens=40,
        temperature=0,
        max_retries=0,
    )
    assert speaks("pemberton", str(model.invoke("My cup is chipped.").content))
    assert speaks("pemberton", "".join(str(chunk.content) for chunk in model.stream("My cup is chipped.")))


def test_curl(gateway: Gateway) -> None:
    body = {"model": "tidewater", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 30}
    done = subprocess.run(
        ["curl", "-sS", "-H", f"Authorization: Bearer {gateway.key}", "-H", "Content-Type: application/json",
         "-d", json.dumps(body), f"{gateway.url}/v1/chat/completions"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert json.loads(done.stdout)["model"] == "tidewater"
