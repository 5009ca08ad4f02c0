"""The Responses and Messages routes of the real engine name a contained fault, as its other routes do."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.integration.engine.conftest import Engine

DOORS = {
    "/v1/responses": {"input": "Hello", "max_output_tokens": 6, "store": False},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def overflow(engine: Engine) -> str:
    """An adapter whose finite weights give activations that are not."""
    return engine.put("overflow-in-a-door", variant="overflow", seed=9)


@pytest.mark.parametrize("path", DOORS)
async def test_an_answer_names_the_fault(engine: Engine, overflow: str, path: str) -> None:
    status, data = await engine.post(path, {"model": overflow, **DOORS[path]})
    assert status == 500, data
    assert orjson.loads(data)["error"]["type"] == "adapter_not_finite"


@pytest.mark.parametrize("path", DOORS)
async def test_a_stream_ends_in_an_error_event_that_names_it(engine: Engine, overflow: str, path: str) -> None:
    status, data = await engine.post(path, {"model": overflow, "stream": True, **DOORS[path]})
    assert status == 200, "the stream had begun"
    *_, last = data.decode().strip().split("\n\n")
    kind, told = last.split("\n")
    assert kind == "event: error"
    assert orjson.loads(told.removeprefix("data: "))["error"]["type"] == "adapter_not_finite"
    assert not re.findall(rb"^event: .*delta$", data, re.M)


@pytest.mark.parametrize("path", DOORS)
async def test_a_prompt_that_is_too_long_names_the_parameter(engine: Engine, path: str) -> None:
    long: dict[str, Any] = {
        "/v1/responses": {"input": "word " * 3000},
        "/v1/messages": {"messages": [{"role": "user", "content": "word " * 3000}]},
    }
    status, data = await engine.post(path, {"model": engine.base_name, **DOORS[path], **long[path]})
    assert status == 400, data
    assert orjson.loads(data)["error"]["param"] == "input_tokens"


async def test_a_sound_request_goes_on_to_its_own_end(engine: Engine) -> None:
    ends = {"/v1/responses": "response.completed", "/v1/messages": "message_stop"}
    for path, end in ends.items():
        status, data = await engine.post(path, {"model": engine.base_name, "stream": True, **DOORS[path]})
        assert status == 200
        assert data.decode().strip().split("\n\n")[-1].startswith(f"event: {end}\n")
