"""The prompt that a request would get, without the engine."""

from __future__ import annotations

from typing import Any

import pytest

from service.access.limits import KeyLimiter
from service.grounding.config import GroundingSettings
from service.inference.prompt import RENDER_PATH
from tests.unit.service.grounding.fakes import RETURNS, Told
from tests.unit.service.grounding.test_hook import world
from tests.unit.service.inference.fakes import World, chat_body

GROUNDED = GroundingSettings(vector_store_ids=("vs_a",), template="{passages}\nSo: {question}")


async def test_it_is_the_prompt_that_the_engine_gets() -> None:
    made = world(Told(RETURNS), GROUNDED)
    await made.chat()
    sent = made.engine.last.body
    answer = await made.ask(RENDER_PATH, chat_body())
    rendered = answer.json()
    assert rendered["messages"] == sent["messages"]
    assert (rendered["object"], rendered["model"], rendered["tools"]) == ("chat.completion.prompt", "voice", [])
    assert rendered["grounding"]["outcome"] == "ok"
    assert [citation["id"] for citation in rendered["grounding"]["citations"]] == ["p-1"]
    assert answer.headers["x-hatrack-adapter"] == "voice@3"
    assert len(made.engine.asked) == 1


async def test_sampling_defaults_are_among_its_parameters_and_the_request_s_own_come_first() -> None:
    answer = await World().ask(RENDER_PATH, chat_body(temperature=0.9, tools=[]))
    assert answer.json()["parameters"] == {"temperature": 0.9, "max_tokens": 7}
    assert answer.json()["grounding"] is None


async def test_it_runs_no_model_and_its_prompt_is_charged_to_the_key() -> None:
    made = world(Told(RETURNS), GROUNDED)
    await made.ask(RENDER_PATH, chat_body())
    [record] = made.records
    assert (record.outcome, record.reached, record.usage and record.usage.prompt_tokens) == ("ok", False, 0)
    assert record.grounded is not None
    assert record.tokens == record.prompt > record.grounded.tokens > 0


@pytest.mark.parametrize("body", [{"stream": True}, {"stream_options": {}}, {"colour": 1}, {"messages": None}])
async def test_what_it_does_not_take_is_refused_by_name(body: dict[str, Any]) -> None:
    answer = await World(limiter=KeyLimiter()).ask(RENDER_PATH, chat_body(**body))
    assert (answer.status, answer.error["param"]) == (400, next(iter(body)))
