"""A version's required filters hold in its training: the prompts are rendered by the gateway's real hook."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from service.grounding.config import GroundingSettings
from service.inference.prompt import RENDER_PATH
from tests.unit.service.grounding.test_required_filters import MINE, POLICY, THEIRS, UNLABELLED, Filtering, world
from tests.unit.service.grounding.test_turns import example as shown_example
from tests.unit.service.grounding.test_turns import turns_of
from tests.unit.service.inference.fakes import BASE
from trainer.data.format import Example, Message
from trainer.errors import DataInvalid, GatewayRefused
from trainer.finetune.passages import TrainingPassages
from trainer.finetune.spec import PASSAGES
from trainer.runs.gateway import Gateway

FENCED: dict[str, Any] = {"vector_store_ids": ["vs_a"], "required_filters": ["customer"]}
ASKED = Message("user", "Where is my order?", trained=False)
ANSWER = Message("assistant", "At sea.", trained=True)


class Rendering:
    """The route that a job's worker asks, over a store of several customers' orders."""

    def __init__(self, *passages: Any) -> None:
        self.gateway = world(None, provider=Filtering(*passages))

    def rendered(self, model: str, messages: list[dict[str, str]], grounding: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": model, "messages": messages, "grounding": grounding}
        answer = asyncio.run(self.gateway.ask(RENDER_PATH, body))
        if answer.status != 200:
            raise GatewayRefused(answer.status, answer.error["code"], answer.error["message"])
        rendered: list[dict[str, Any]] = answer.json()["messages"]
        return rendered


def trained_on(home: Path, gateway: Rendering, grounding: dict[str, Any], **filters: Any) -> tuple[Message, ...]:
    passages = TrainingPassages(home / PASSAGES, cast(Gateway, gateway), BASE, grounding)
    return passages(Example(1, (ASKED, ANSWER), filters=filters), (ASKED, ANSWER))


@pytest.mark.parametrize(
    ("customer", "seen", "hidden"),
    [
        ("c-1", [MINE, POLICY], [THEIRS, UNLABELLED]),
        ("c-2", [THEIRS, POLICY], [MINE, UNLABELLED]),
        ("*", [POLICY], [MINE, THEIRS, UNLABELLED]),
    ],
)
def test_a_prompt_has_its_own_customers_documents_alone(
    tmp_path: Path, customer: str, seen: list[Any], hidden: list[Any]
) -> None:
    gateway = Rendering(MINE, THEIRS, POLICY, UNLABELLED)
    prompt = trained_on(tmp_path, gateway, FENCED, customer=customer)[0].content
    assert all(passage.text in prompt for passage in seen)
    assert not any(passage.text in prompt for passage in hidden)


def test_examples_of_another_customer_are_no_turns(tmp_path: Path) -> None:
    mine, theirs = shown_example(1, "Mine?", "Yours.", customer="c-1"), shown_example(2, "His?", "No.", customer="c-2")
    grounding = FENCED | {"insert_as": "turns"}
    prompt = trained_on(tmp_path, Rendering(mine, theirs), grounding, customer="c-1")
    shown = [{"role": message.role, "content": message.content} for message in prompt[:-2]]
    assert shown == turns_of(mine)
    assert [message.trained for message in prompt] == [False, False, False, True]


def test_without_a_value_nothing_is_asked_of_the_store(tmp_path: Path) -> None:
    gateway = Rendering(MINE)
    with pytest.raises(DataInvalid, match="customer"):
        trained_on(tmp_path, gateway, FENCED)
    assert not gateway.gateway.records
    with pytest.raises(GatewayRefused, match="customer"):  # nor would the gateway give any
        gateway.rendered(BASE, [{"role": "user", "content": "Where?"}], FENCED)


def test_a_job_takes_required_filters_as_a_version_does() -> None:
    assert GroundingSettings.model_validate(FENCED | {"insert_as": "turns"}).required_filters == ("customer",)
