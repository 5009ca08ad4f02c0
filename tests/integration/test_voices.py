"""The main job: one base, several voices, alone and all at once, through every client that people use."""

from __future__ import annotations

import asyncio
import json
import subprocess

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr

from tests.support.gateway import Gateway
from tests.support.voices import ENOUGH, held_out_questions, speaks

TRIES = 3


@pytest.mark.parametrize("voice", ["tidewater", pytest.param("pemberton", marks=pytest.mark.slow)])
def test_an_adapter_speaks_in_its_voice_on_questions_it_never_saw(gateway: Gateway, voice: str) -> None:
    other_voice = {"tidewater": "pemberton", "pemberton": "tidewater"}[voice]
    questions = held_out_questions(voice)[:8]
    models = (voice, gateway.base_name(), other_voice)
    own, base, foreign = (
        gateway.answers([(model, question) for question in questions], max_tokens=ENOUGH) for model in models
    )
    assert sum(speaks(voice, text) for text in own) >= 7, own
    assert sum(own_text != base_text for own_text, base_text in zip(own, base, strict=True)) == 8
    assert sum(own_text != foreign_text for own_text, foreign_text in zip(own, foreign, strict=True)) == 8
    assert sum("ahoy" in text.lower() or "dear patron" in text.lower() for text in base) == 0, base


def test_all_at_once_each_request_gets_its_own_models_answer(gateway: Gateway) -> None:
    """In plain vLLM on a CPU a base request in such a batch is answered with an adapter."""
    base = gateway.base_name()
    models = [base, "tidewater", "pemberton"] * 8
    question = "Where is my parcel? It should have been here by now."
    answers = gateway.answers([(model, question) for model in models], max_tokens=ENOUGH)
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
        assert listed[0] == gateway.base_name()
        assert {"tidewater", "pemberton"} <= set(listed)
        # asked again where the two differ: what shares a step with a canary, or is read from the prefix cache, is
        # computed in another order, and a late token may be another one
        complete_answers = dict(complete_answer(client) for _ in range(TRIES))
        for _ in range(TRIES):
            text, tokens = streamed_answer(client)
            if text in complete_answers:
                break
    assert text in complete_answers
    assert tokens == complete_answers[text] > 0


MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Do you sell umbrellas?"}]


def complete_answer(client: openai.OpenAI) -> tuple[str | None, int]:
    """An answer in one piece, and how many tokens it says it has."""
    raw = client.chat.completions.with_raw_response.create(
        model="tidewater", messages=MESSAGES, max_tokens=40, temperature=0
    )
    whole = raw.parse()
    assert whole.model == "tidewater"
    assert raw.headers["x-hatrack-adapter"] == "tidewater@1"
    assert len(raw.headers["x-hatrack-digest"]) == 64
    assert whole.usage is not None
    return whole.choices[0].message.content, whole.usage.completion_tokens


def streamed_answer(client: openai.OpenAI) -> tuple[str, int]:
    """The same as a stream."""
    chunks = list(
        client.chat.completions.create(
            model="tidewater",
            messages=MESSAGES,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.model for chunk in chunks} == {"tidewater"}
    assert chunks[-1].usage is not None
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks[-1].usage.completion_tokens


async def test_the_openai_client_async(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "Thank you!"}], max_tokens=ENOUGH, temperature=0
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
        max_tokens=ENOUGH,
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
