"""What the gateway is asked to find for a question: its filters, and nothing of its own group."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.evaluate.conftest import Gateway
from tests.unit.trainer.evaluate.test_asking import BASE, TUNED, answerer, asks
from tests.unit.trainer.evaluate.worlds import questions
from trainer.errors import AnswerRefused
from trainer.evaluate.arms import Arm
from trainer.evaluate.asking import ArmRequest

__all__ = ["answerer"]


async def test_a_questions_filters_go_to_the_gateway_joined_to_the_arms_own(gateway: Gateway, answerer: Any) -> None:
    def eq(name: str, value: str) -> dict[str, str]:
        return {"type": "eq", "key": name, "value": value}

    arms = (
        TUNED,
        Arm(label="grounded", model="smol", grounding={"vector_store_ids": ["vs_1"], "filters": eq("region", "eu")}),
        Arm(label="bare", model="voice@3", grounding=False),
    )
    mine, none = questions(2)
    mine = mine.model_copy(update={"filters": {"customer": "c-1"}})
    requests = [ArmRequest(arm, question) for question in (mine, none) for arm in arms]
    await answerer(concurrency=1, required_filters=["customer"]).answer(requests)
    sent = [body.get("grounding", "unset") for _, body in gateway.requests]
    assert sent[:3] == [
        {"filters": {"type": "and", "filters": [eq("customer", "c-1")]}},
        {
            "vector_store_ids": ["vs_1"],
            "filters": {"type": "and", "filters": [eq("customer", "c-1"), eq("region", "eu")]},
        },
        False,
    ]
    # a suite's question belongs to nobody: it finds what is everyone's
    assert sent[3] == {"filters": {"type": "and", "filters": [eq("customer", "*")]}}


async def test_a_question_is_never_shown_what_a_store_has_of_its_own_group(gateway: Gateway, answerer: Any) -> None:
    europe = {"type": "eq", "key": "region", "value": "eu"}
    others = {"type": "ne", "key": "group", "value": "ticket-1"}
    arms = (
        TUNED,
        Arm(label="with passages", model="smol", grounding={"vector_store_ids": ["vs_1"]}),
        Arm(label="bare", model="voice@3", grounding=False),
        BASE,
    )
    mine, none = questions(2)
    mine = mine.model_copy(update={"group": "ticket-1"})
    settings = {"voice@3": {"vector_store_ids": ["vs_1"], "filters": europe}}
    requests = [ArmRequest(arm, question) for question in (mine, none) for arm in arms]
    await answerer(concurrency=1, groundings=settings).answer(requests)
    sent = [body.get("grounding", "unset") for _, body in gateway.requests]
    # a request's filters replace the version's, which therefore go along
    assert sent[:4] == [
        {"filters": {"type": "and", "filters": [europe, others]}},
        {"vector_store_ids": ["vs_1"], "filters": others},
        False,
        "unset",
    ]
    assert sent[4:] == ["unset", {"vector_store_ids": ["vs_1"]}, False, "unset"]


async def test_a_questions_group_and_filters_are_joined_to_the_versions_own(gateway: Gateway, answerer: Any) -> None:
    settings = {"vector_store_ids": ["vs_1"], "filters": {"type": "eq", "key": "region", "value": "eu"}}
    (question,) = questions(1)
    question = question.model_copy(update={"group": "ticket-1", "filters": {"customer": "c-1"}})
    await answerer(groundings={"voice@3": settings}).answer([ArmRequest(TUNED, question)])
    ((_, body),) = gateway.requests
    assert body["grounding"]["filters"] == {
        "type": "and",
        "filters": [
            {"type": "eq", "key": "customer", "value": "c-1"},
            {
                "type": "and",
                "filters": [settings["filters"], {"type": "ne", "key": "group", "value": "ticket-1"}],
            },
        ],
    }


async def test_what_a_version_demands_and_a_question_lacks_is_said(gateway: Gateway, answerer: Any) -> None:
    gateway.refused_models["voice@3"] = (400, "required_filter_missing", {})
    with pytest.raises(AnswerRefused) as refused:
        await answerer().answer(asks(1))
    assert refused.value.answer_code == "required_filter_missing"
