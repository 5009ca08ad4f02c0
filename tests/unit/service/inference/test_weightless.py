"""Requests for versions without weights, and a version's examples in each dialect's prompt."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from service.access.authentication import Authenticator
from service.access.caller import Caller, Scope
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.errors import ModelNotFound
from service.grounding.hook import Hook
from service.grounding.template import PassageFormatter
from service.registry.catalog import (
    AdapterEntry,
    CatalogSnapshot,
    PromptExample,
    Servable,
    VersionEntry,
    VersionSettings,
)
from tests.unit.service.inference.fakes import BASE, DIGESTS, World, chat_body, completion, version

EXAMPLE = PromptExample(user="Do you ship abroad?", assistant="Aye.")
SUPPORT = VersionSettings(system_prompt="You are the shop.", examples=(EXAMPLE,), sampling={"temperature": 0.25})
SHOWN = [{"role": "user", "content": "Do you ship abroad?"}, {"role": "assistant", "content": "Aye."}]
SYSTEM = {"role": "system", "content": "You are the shop."}
HELLO = {"role": "user", "content": "Hello"}


def stocked(**more: Any) -> World:
    """A world with `support`: its first version has no weights, its second has, with the same settings."""
    world = World(**more)
    entries = {
        1: VersionEntry(1, None, SUPPORT, Servable.OK, 1, flow="default/support@1"),
        2: version(2, SUPPORT),
    }
    support = AdapterEntry("support", 1, MappingProxyType(entries), {"live": 1})
    adapters = {**world.catalog.snapshot.adapters, ("default", "support"): support}
    world.catalog.replace(CatalogSnapshot(MappingProxyType(adapters)))
    world.engine.chunks = [completion("Aye", BASE)]
    return world


async def test_the_base_answers_with_the_version_s_prompt_under_the_label_that_was_asked_for() -> None:
    world = stocked()
    answer = await world.chat(model="support")
    assert answer.status == 200
    assert answer.json()["model"] == "support"
    assert answer.headers["x-hatrack-adapter"] == "support@1"
    assert "x-hatrack-digest" not in answer.headers
    asked = world.engine.last.body
    assert (asked["model"], asked["temperature"]) == (BASE, 0.25)
    assert asked["messages"] == [SYSTEM, *SHOWN, HELLO]
    [record] = world.records
    assert record.target is not None
    assert (record.target.adapter, record.target.version, record.target.digest) == ("support", 1, None)


async def test_a_version_with_weights_has_examples_too() -> None:
    world = stocked()
    world.engine.chunks = [completion("Aye", DIGESTS[2])]
    answer = await world.chat(model="support@2")
    assert (answer.json()["model"], answer.headers["x-hatrack-digest"]) == ("support@2", DIGESTS[2])
    assert world.engine.last.body["messages"] == [SYSTEM, *SHOWN, HELLO]
    assert world.engine.last.body["model"] == DIGESTS[2]


async def test_a_request_s_own_system_message_takes_the_prompt_s_place_and_the_examples_follow_it() -> None:
    world = stocked()
    own = {"role": "developer", "content": "Be brief."}
    await world.chat(model="support", messages=[own, HELLO])
    assert world.engine.last.body["messages"] == [own, *SHOWN, HELLO]


async def test_examples_are_shared_by_requests_and_changed_by_none() -> None:
    world = stocked()
    for _ in range(2):
        await world.chat(model="support")
        assert world.engine.last.body["messages"] == [SYSTEM, *SHOWN, HELLO]
    assert list(SUPPORT.example_messages) == SHOWN
    assert SUPPORT.example_messages is SUPPORT.example_messages


@pytest.mark.parametrize("question", ["Hello", [{"role": "user", "content": "Hello"}]])
async def test_responses(question: Any) -> None:
    world = stocked()
    await world.ask("/v1/responses", {"model": "support", "input": question})
    items = world.engine.last.body["input"]
    assert [(item["role"], item["content"]) for item in items] == [
        ("system", "You are the shop."),
        *((message["role"], message["content"]) for message in SHOWN),
        ("user", "Hello"),
    ]
    await world.ask("/v1/responses", {"model": "support", "input": question, "instructions": "Be brief."})
    assert [item["role"] for item in world.engine.last.body["input"]] == ["user", "assistant", "user"]


async def test_anthropic_s_messages_and_their_count() -> None:
    world = stocked()
    body = {"model": "support", "messages": [HELLO], "max_tokens": 5}
    await world.ask("/v1/messages", body)
    asked = world.engine.last.body
    assert (asked["system"], asked["messages"]) == ("You are the shop.", [*SHOWN, HELLO])
    del body["max_tokens"]
    await world.ask("/v1/messages/count_tokens", body)
    counted = world.engine.last
    assert (counted.path, counted.body["messages"]) == ("/v1/messages/count_tokens", [*SHOWN, HELLO])


async def test_a_conversation_is_tokenized_with_the_examples_and_a_text_as_it_is() -> None:
    world = stocked()
    await world.ask("/tokenize", {"model": "support", "messages": [HELLO]})
    assert world.engine.last.body["messages"] == [SYSTEM, *SHOWN, HELLO]
    await world.ask("/tokenize", {"model": "support", "prompt": "Hello"})
    assert world.engine.last.body["prompt"] == "Hello"


async def test_a_text_completion_has_no_place_for_a_prompt() -> None:
    world = stocked()
    answer = await world.ask("/v1/completions", {"model": "support", "prompt": "The sea is"})
    assert (answer.status, answer.headers["x-hatrack-adapter"]) == (200, "support@1")
    asked = world.engine.last.body
    assert (asked["prompt"], asked["temperature"], "messages" in asked) == ("The sea is", 0.25, False)


async def test_examples_count_in_what_a_request_is_expected_to_take() -> None:
    world = stocked()
    await world.chat(model="support")
    await world.ask("/v1/chat/completions", chat_body(model=BASE))
    with_examples, bare = world.records
    assert SUPPORT.example_tokens > 0
    assert with_examples.estimate - bare.estimate >= SUPPORT.example_tokens
    assert with_examples.prompt - bare.prompt >= SUPPORT.example_tokens


async def test_no_slot_is_used_and_the_version_has_a_turn_of_its_own() -> None:
    queue = AdmissionQueue(Policy(width=4, common=4, slots=2, queue_size=16))
    world = stocked(gate=queue)
    seen = []
    send = world.engine.send

    async def watched(path: str, body: bytes, headers: dict[str, str]) -> Any:
        now = queue.snapshot()
        seen.append((now.slots_in_use, dict(now.in_flight_by_adapter)))
        return await send(path, body, headers)

    world.engine.send = watched  # type: ignore[method-assign]
    await world.chat(model="support")
    await world.chat(model=BASE)
    await world.chat(model="support@2")
    assert seen == [(0, {"default/support@1": 1}), (0, {None: 1}), (1, {DIGESTS[2]: 1})]


async def test_no_example_is_taken_for_the_question_that_passages_answer() -> None:
    asked = []

    class RecordingProvider:
        async def retrieve(self, query: Any, deadline: float) -> list[Any]:
            asked.append((query.text, query.messages))
            return []

    providers: dict[str, Any] = {"embedded": RecordingProvider()}
    hook = Hook(providers, PassageFormatter(b"secret", ()), context=2048, on_failure="fail_open", timeout_s=240)
    authenticator = Authenticator("a-key-of-the-tests")
    world = stocked(hook=hook, authenticator=authenticator)
    answer = await world.chat(model="support", grounding={"vector_store_ids": ["vs_1"]})
    assert answer.status == 200, answer.body
    assert asked == [("Hello", [SYSTEM, HELLO])]
    assert world.engine.last.body["messages"] == [SYSTEM, *SHOWN, HELLO]


def test_a_key_s_globs_hold_for_it() -> None:
    world = stocked()
    narrow = Caller("key", "default", frozenset({Scope.INFER}), adapters=("voice*",))
    with pytest.raises(ModelNotFound, match="does not exist"):
        world.catalog.resolve(narrow, "support")
