"""One adapter cannot harm others: real adapters, sound and broken, in one batch of the real engine."""

import asyncio
import itertools
import random
import re
import shutil
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.integration.engine.conftest import RESIDENT, SLOTS, Engine

PROMPTS = (
    "Once upon a time there was a small village by the sea, and the people who lived there knew that",
    "The order that I placed with your shop last Monday has not arrived yet, so I would like to ask",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\nprint(",
    "The history of the city goes back to the Romans, who built a bridge over the river in order to",
)
"""Each longer than LARGE_GROUP tokens: alone and in a batch its rows take the same way through the plugin."""
NEAR_TIE = 0.15
"""Nats between the two likeliest tokens below which bf16 sums in another order may choose the other one."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sound_adapters(engine: Engine) -> list[str]:
    """Three strong adapters."""
    return [engine.put(f"sound-{seed}", seed=seed, scale=0.15) for seed in range(3)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broken_adapters(engine: Engine) -> dict[str, str]:
    """Adapters that no inspection has seen: NaN, infinity, and finite values that overflow."""
    return {
        "nan": engine.put("nan", variant="nan", seed=9),
        "infinite": engine.put("infinite", variant="infinite", seed=9),
        "overflow": engine.put("overflow", variant="overflow", seed=9),
    }


def same_answer(got: Any, alone: Any) -> bool:
    """Whether two greedy answers agree up to the first step where the second one was a near tie."""
    got, alone = got["choices"][0], alone["choices"][0]
    steps = zip(got["token_ids"], alone["token_ids"], alone["logprobs"]["top_logprobs"], strict=True)
    for token, expected, likeliest in steps:
        if token != expected:
            first, second = sorted(likeliest.values(), reverse=True)[:2]
            return bool(first - second < NEAR_TIE)
    return True


async def answers_one_by_one(engine: Engine, models: list[str]) -> dict[tuple[str, str], Any]:
    """The answers of each model to each prompt, one request at a time."""
    answers = {}
    for model in models:
        for prompt in PROMPTS:
            status, answers[model, prompt] = await engine.complete(model, prompt)
            assert status == 200, answers[model, prompt]
    return answers


async def test_in_a_mixed_batch_every_request_gets_its_own_models_answer(
    engine: Engine, sound_adapters: list[str], broken_adapters: dict[str, str]
) -> None:
    models = [engine.base_name, *sound_adapters]
    assert len(models) - 1 + len(broken_adapters) <= SLOTS, "all in one step, else nothing is mixed"
    expected = await answers_one_by_one(engine, models)
    for first, second in itertools.permutations(models, 2):
        distinguishing = [
            prompt for prompt in PROMPTS if not same_answer(expected[first, prompt], expected[second, prompt])
        ]
        assert len(distinguishing) >= len(PROMPTS) // 2, f"{first} and {second} answer alike: this would prove nothing"
    order = random.Random(5)
    for attempt in range(4):
        jobs = [(model, prompt) for model in (*models, *broken_adapters.values()) for prompt in PROMPTS]
        order.shuffle(jobs)
        salted = [engine.complete(m, p, cache_salt=f"{attempt}-{i}") for i, (m, p) in enumerate(jobs)]
        for (model, prompt), (status, answer) in zip(jobs, await asyncio.gather(*salted), strict=True):
            if model in broken_adapters.values():
                assert status == 500, answer
                assert answer["error"]["type"] == "adapter_not_finite"
            else:
                assert status == 200, answer
                assert same_answer(answer, expected[model, prompt]), (model, prompt, answer)


async def test_log_probabilities_of_the_base_are_the_same_to_the_bit_after_broken_adapters(
    engine: Engine, broken_adapters: dict[str, str]
) -> None:
    before = await base_logprobs(engine)
    for digest in broken_adapters.values():
        for prompt in PROMPTS:
            status, _ = await engine.complete(digest, prompt)
            assert status == 500
    assert await base_logprobs(engine) == before


async def base_logprobs(engine: Engine) -> list[list[float]]:
    """Of the prompts, each in a step that it has to itself: another split into steps sums in another order."""
    engine.supervisor.saw_tokens()  # and so no canary comes meanwhile
    return [(await engine.client.logprobs(engine.base_name, [prompt]))[0] for prompt in PROMPTS]


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several choices": {"n": 3, "temperature": 1},
    "sampling": {"temperature": 1, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
    "penalties": {"presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.2},
    "min_tokens": {"min_tokens": 4},
    "allowed tokens": {"allowed_token_ids": [1, 2, 3]},
    "bias": {"logit_bias": {"5": 100}},
    "bad words": {"bad_words": ["the"]},
}
CHAT = {
    "json": {"response_format": {"type": "json_object"}},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "tools": {"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]},
}
COMPLETION = {
    "prompt logprobs": {"prompt_logprobs": 0},
    "echo alone": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "two prompts": {"prompt": list(PROMPTS[:2])},
    "long prompt": {"prompt": "word " * 1500},
}
CASES = [
    *(("/v1/chat/completions", options) for options in (REQUESTS | CHAT).values()),
    *(("/v1/completions", options) for options in (REQUESTS | COMPLETION).values()),
]
IDS = [f"chat, {name}" for name in REQUESTS | CHAT] + [f"completion, {name}" for name in REQUESTS | COMPLETION]


def request_for(path: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in path else {"prompt": "Hello"}
    return {"model": model, "max_tokens": 6, **prompt, **options}


@pytest.mark.parametrize("kind", ["nan", "overflow"])
@pytest.mark.parametrize(("path", "options"), CASES, ids=IDS)
async def test_a_broken_adapter_answers_an_error_to_every_kind_of_request(
    engine: Engine, broken_adapters: dict[str, str], path: str, options: dict[str, Any], kind: str
) -> None:
    status, data = await engine.post(path, request_for(path, broken_adapters[kind], options))
    assert status == 500, data
    error = orjson.loads(data)["error"]
    assert (error["type"], error["code"], error["param"]) == ("adapter_not_finite", 500, None)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("options", [{}, {"n": 2, "temperature": 1}], ids=["one choice", "two choices"])
async def test_a_stream_of_a_broken_adapter_ends_in_an_error_event_and_has_no_text(
    engine: Engine, broken_adapters: dict[str, str], path: str, options: dict[str, Any]
) -> None:
    status, data = await engine.post(path, request_for(path, broken_adapters["overflow"], {"stream": True, **options}))
    assert status == 200  # the stream had begun
    events = [orjson.loads(event) for event in re.findall(rb"^data: (\{.*)$", data, re.M)]
    assert [event["error"]["type"] for event in events if "error" in event] == ["adapter_not_finite"]
    for event in events:
        for choice in event.get("choices", ()):
            assert not choice.get("text")
            assert not choice.get("delta", {}).get("content")
            assert choice["finish_reason"] is None


@pytest.mark.parametrize("options", (REQUESTS | CHAT).values(), ids=(REQUESTS | CHAT).keys())
async def test_requests_that_mask_logits_on_purpose_are_answered(engine: Engine, options: dict[str, Any]) -> None:
    path = "/v1/chat/completions"
    status, data = await engine.post(path, request_for(path, engine.base_name, options))
    assert status == 200, data


async def test_an_adapter_with_missing_files_fails_alone_and_serves_again_once_they_are_back(
    engine: Engine, sound_adapters: list[str]
) -> None:
    digest = engine.put("vanishing", seed=21, scale=0.05)
    others = [engine.put(f"crowd-{number}", seed=30 + number, rank=4) for number in range(RESIDENT)]
    _, expected = await engine.complete(digest, PROMPTS[0])
    _, base_alone = await engine.complete(engine.base_name, PROMPTS[0])

    async def evict() -> None:
        for resident in others:
            status, _ = await engine.complete(resident, PROMPTS[0])
            assert status == 200
        assert digest not in (await engine.client.report(loaded=True))["loaded"]

    await evict()
    away = engine.store / "away"
    shutil.move(engine.store / digest, away)
    (status, gone), (base_status, base_answer), (other_status, _) = await asyncio.gather(
        engine.complete(digest, PROMPTS[0]),
        engine.complete(engine.base_name, PROMPTS[0]),
        engine.complete(others[0], PROMPTS[0]),
    )
    assert (status, gone["error"]["type"]) == (500, "adapter_unloadable")
    assert (base_status, other_status) == (200, 200)
    assert same_answer(base_answer, base_alone)
    shutil.move(away, engine.store / digest)
    status, back = await engine.complete(digest, PROMPTS[0])
    assert status == 200
    assert same_answer(back, expected)

    await evict()
    weights = engine.store / digest / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    status, cut = await engine.complete(digest, PROMPTS[0])
    assert (status, cut["error"]["type"]) == (500, "adapter_unloadable")
    weights.write_bytes(whole)
    status, back = await engine.complete(digest, PROMPTS[0])
    assert status == 200
    assert same_answer(back, expected)


async def test_a_truncated_adapter_is_refused_and_the_base_still_answers(engine: Engine) -> None:
    digest = engine.put("truncated", variant="truncated", seed=22)
    status, answer = await engine.complete(digest, PROMPTS[0])
    assert status == 400, answer
    status, _ = await engine.complete(engine.base_name, PROMPTS[0])
    assert status == 200


@pytest.mark.parametrize("name", ["0" * 64, "brand-voice", "../{}", "{}/", "{}\n", "./{}"])
async def test_only_a_digest_in_the_store_is_found(engine: Engine, sound_adapters: list[str], name: str) -> None:
    status, answer = await engine.complete(name.format(sound_adapters[0]), PROMPTS[0])
    assert status == 404, answer


async def test_a_link_in_the_store_is_not_followed(engine: Engine, sound_adapters: list[str]) -> None:
    link = engine.store / ("f" * 64)
    link.symlink_to(engine.store / sound_adapters[0])
    status, answer = await engine.complete(link.name, PROMPTS[0])
    assert status == 404, answer


async def test_the_plugin_route_reports_the_engines_settings_and_loaded_adapters(
    engine: Engine, sound_adapters: list[str]
) -> None:
    await engine.complete(sound_adapters[0], PROMPTS[0])
    report = await engine.client.report(loaded=True)
    assert report["protocol"] == 2
    assert report["names"] == [engine.base_name]
    assert (report["slots"], report["resident_limit"], report["max_rank"]) == (SLOTS, RESIDENT, 32)
    assert report["store"] == str(engine.store.resolve())
    assert report["store_inode"] == engine.store.stat().st_ino
    assert sound_adapters[0] in report["loaded"]
    assert "loaded" not in await engine.client.report()
