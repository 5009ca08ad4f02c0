"""A body that would take the event loop longer than a moment is refused before it is parsed."""

from __future__ import annotations

import orjson
import pytest

from service.errors import BadRequest
from service.http.checks import parse_body
from service.http.json_text import MAX_CONTAINERS, MAX_VALUES, excess_of
from tests.unit.service.inference.fakes import World

MANY = {
    "lists": (b'{"model":"m","messages":[' + b"[]," * 2_700_000 + b"[]]}", MAX_CONTAINERS),
    "objects": (b'{"model":"m","messages":[' + b"{}," * 60_000 + b"{}]}", MAX_CONTAINERS),
    "keys": (b'{"model":"m",' + b'"k":1,' * 60_000 + b'"n":1}', MAX_CONTAINERS),
    "numbers": (b'{"model":"m","prompt":[' + b"1," * 4_000_000 + b"1]}", MAX_VALUES),
    "texts": (b'{"model":"m","prompt":[' + b'"",' * 2_600_000 + b'""]}', MAX_VALUES),
    "escapes": (b'{"model":"m","prompt":[' + b'"\\\\",' * 1_000_000 + b'""]}', MAX_VALUES),
}


@pytest.mark.parametrize("kind", MANY)
async def test_a_body_of_more_values_than_the_bound_is_not_parsed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, bound = MANY[kind]
    world = World()
    monkeypatch.setattr("service.http.json_text.orjson.loads", lambda _: pytest.fail("it is parsed"))
    answer = await world.ask("/v1/chat/completions", raw)
    monkeypatch.undo()
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert str(bound) in answer.error["message"]


def test_commas_and_brackets_in_a_text_are_no_values() -> None:
    text = '[{"a": "b\\",},:,]\\' * 100_000
    assert parse_body(orjson.dumps({"prompt": text, "ids": [7] * 262_144}))["prompt"] == text
    with pytest.raises(BadRequest, match="300000 values"):
        parse_body(orjson.dumps({"prompt": text, "ids": [7] * 300_001}))


@pytest.mark.parametrize("character", [b"[", b"{", b":", b",", b'"'])
def test_a_text_that_is_too_short_to_exceed_a_bound_is_not_counted(
    character: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_bound = character * MAX_CONTAINERS
    assert excess_of(at_the_bound) is None
    assert (excess_of(at_the_bound, character) is None) == (character in b',"'), "texts count together"
    monkeypatch.setattr("service.http.json_text._counted_excess", lambda _: pytest.fail("it is counted"))
    assert excess_of(at_the_bound[:1], at_the_bound[1:]) is None
    assert excess_of() is None
