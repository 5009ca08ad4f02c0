"""Which of a caller's hints keeps it with one version."""

from __future__ import annotations

from typing import Any

import pytest

from service.access.caller import Caller
from service.errors import BadRequest
from service.inference.sticky import sticky
from service.registry.catalog import Target
from tests.unit.service.inference.fakes import World, answer_of, chat_body

HEADER = {"x-hatrack-sticky": "header"}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({"safety_identifier": "s", "user": "u", "metadata": {"user_id": "m"}}, HEADER, "s"),
        ({"user": "u", "metadata": {"user_id": "m"}}, HEADER, "u"),
        ({"metadata": {"user_id": "m"}}, HEADER, "m"),
        ({}, HEADER, "header"),
        ({"user": 3, "metadata": "x", "safety_identifier": None}, HEADER, "header"),
        ({"user": "", "metadata": {"user_id": ["m"]}}, {}, None),
        ({}, {"x-hatrack-sticky": ""}, None),
    ],
)
def test_the_first_hint_counts(body: dict[str, Any], headers: dict[str, str], expected: str | None) -> None:
    assert sticky(body, headers) == expected


def test_a_header_without_bound_is_refused() -> None:
    assert sticky({}, {"x-hatrack-sticky": "x" * 512}) == "x" * 512
    with pytest.raises(BadRequest, match="513 characters"):
        sticky({}, {"x-hatrack-sticky": "x" * 513})


async def test_a_header_without_bound_is_refused_for_a_name_that_was_resolved_before() -> None:
    world = World()
    world.engine.chunks = [answer_of("/v1/completions")]
    request = {"model": "voice", "prompt": "x"}
    assert (await world.ask("/v1/completions", request)).status == 200
    answer = await world.ask("/v1/completions", request, headers={"x-hatrack-sticky": "x" * 513})
    assert (answer.status, answer.error["param"]) == (400, "x-hatrack-sticky")


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/v1/chat/completions", chat_body(user="u"), {}, "u"),
        ("/v1/responses", {"model": "voice", "input": "x", "safety_identifier": "s"}, {}, "s"),
        (
            "/v1/messages",
            {"model": "voice", "messages": chat_body()["messages"], "max_tokens": 3, "metadata": {"user_id": "m"}},
            {},
            "m",
        ),
        ("/v1/completions", {"model": "voice", "prompt": "x"}, HEADER, "header"),
        ("/v1/completions", {"model": "voice", "prompt": "x"}, {}, None),
    ],
)
async def test_every_route_asks_the_catalog_with_it(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], headers: dict[str, str], expected: str | None
) -> None:
    world = World()
    world.engine.chunks = [answer_of(path)]
    seen: list[str | None] = []
    resolve = world.catalog.resolve

    def watch(caller: Caller, model: str, adapter: str | None = None, *, sticky: str | None = None) -> Target:
        seen.append(sticky)
        return resolve(caller, model, adapter, sticky=sticky)

    monkeypatch.setattr(world.catalog, "resolve", watch)
    assert (await world.ask(path, body, headers=headers)).status == 200
    assert seen == [expected]
