"""What is timed of a stream, and whom its first token is told."""

from __future__ import annotations

from typing import Any

import pytest

from service.admission.request import AdmissionRequest
from service.http.stream import TokenUsage
from service.telemetry.record import Record
from tests.unit.service.inference.fakes import DONE, World, chat_body, completion, token, usage_event

BROKEN = b'data: {"error": {"message": "nan", "type": "adapter_not_finite", "param": null, "code": 500}}\n\n'


class Door:
    """A gate that lets everyone in and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def try_enter(self, ticket: AdmissionRequest) -> None:
        return None

    async def enter(self, ticket: AdmissionRequest, deadline: float) -> Door:
        self.told.append("entered")
        return self

    def first_token(self) -> None:
        self.told.append("first token")

    def leave(self, tokens: int | None, *, answered: bool = True) -> None:
        self.told.append(tokens)


STREAM = [token("A"), token("b"), token("c"), usage_event(), DONE]


@pytest.mark.parametrize(
    ("chunks", "stream", "told"),
    [
        (STREAM, True, ["entered", "first token"]),
        ([completion("x")], False, ["entered"]),
        ([BROKEN], True, ["entered"]),
    ],
)
async def test_the_gate_hears_of_the_first_token_of_a_stream_once(
    chunks: list[bytes], stream: bool, told: list[str]
) -> None:
    door = Door()
    world = World(gate=door)
    world.engine.chunks = [*chunks]
    await world.ask("/v1/chat/completions", chat_body(stream=stream))
    assert door.told == [*told, world.records[0].tokens]


@pytest.mark.parametrize("path", ["/v1/tokenize", "/detokenize"])
async def test_a_route_that_runs_no_model_takes_no_place_and_loads_no_adapter(path: str) -> None:
    door = Door()
    world = World(gate=door)
    world.engine.chunks = [b'{"count":1}']
    body = {"prompt": "a"} if path == "/v1/tokenize" else {"tokens": [1]}
    answer = await world.ask(path, {"model": "voice", **body})
    assert (answer.status, answer.headers["x-hatrack-adapter"]) == (200, "voice@3")
    assert world.engine.last.body["model"] == "smol"
    assert door.told == []


async def test_every_piece_after_the_first_has_a_gap() -> None:
    world = World()
    world.engine.chunks = [*STREAM]
    await world.ask("/v1/chat/completions", chat_body(stream=True))
    record: Record = world.records[0]
    assert record.usage == TokenUsage(11, 5, 4)
    assert record.first_byte_s is not None
    assert len(record.gaps) == 3, "b, c and the end; the usage was not asked for"
    assert all(gap >= 0 for gap in record.gaps)
    assert record.first_byte_s + sum(record.gaps) <= record.total_s
    world.engine.chunks = [completion("x")]
    await world.ask("/v1/chat/completions", chat_body())
    assert world.records[1].gaps == []
