"""Whatever JSON comes, the doors answer it: refused by name, or passed to the engine."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.service.inference.fakes import World

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.sampled_from(
        ["", "user", "assistant", "system", "text", "message", "function", "tool_use", "reasoning", "base64", "auto"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "role", "content", "text", "name", "source", "input", "output", "summary", "format"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
DOORS = {
    "/v1/responses": ("input", "tools", "tool_choice", "text", "reasoning", "include", "metadata"),
    "/v1/messages": ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata"),
}


@pytest.mark.parametrize("path", DOORS)
@settings(max_examples=60)
@given(data=st.data())
async def test_no_body_is_too_strange_for_an_answer(path: str, data: st.DataObject) -> None:
    world = World()
    world.engine.chunks = [b'{"usage":{}}']
    given_fields: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(DOORS[path]), VALUES, min_size=1))
    sound = {"model": "voice", "max_tokens": 3} if path == "/v1/messages" else {"model": "voice"}
    answer = await world.ask(path, orjson.dumps({**sound, **given_fields}))
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert answer.error["code"] in {
            *("invalid_value", "unknown_parameter", "parameter_refused", "missing_required_parameter", "invalid_json")
        }
        assert answer.error["message"]
