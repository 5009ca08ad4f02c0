"""The gateway's minimum score, and when markers tell what an answer used."""

from __future__ import annotations

from typing import Any

import pytest

from service.grounding.config import GroundingSettings
from tests.unit.service.grounding.fakes import ORDERS, RETURNS, Told
from tests.unit.service.grounding.test_hook import ASK, world
from tests.unit.service.inference.fakes import completion


@pytest.mark.parametrize(
    ("asked", "settings", "ids", "threshold"),
    [
        (ASK, None, ["p-1"], 0.6),
        (None, GroundingSettings(vector_store_ids=("vs_a",)), ["p-1"], 0.6),
        (None, GroundingSettings(vector_store_ids=("vs_a",), score_threshold=0.4), ["p-1", "p-2"], 0.4),
        ({"score_threshold": 0.95}, GroundingSettings(vector_store_ids=("vs_a",), score_threshold=0.4), [], 0.95),
        ({**ASK, "score_threshold": 0}, None, ["p-1", "p-2"], 0),
        ({**ASK, "score_threshold": None}, None, ["p-1"], 0.6),
    ],
)
async def test_the_gateways_minimum_score_holds_where_neither_request_nor_version_has_one(
    asked: Any, settings: GroundingSettings | None, ids: list[str], threshold: float
) -> None:
    provider = Told(RETURNS, ORDERS)
    answer = await world(provider, settings, min_score=0.6).chat(**({} if asked is None else {"grounding": asked}))
    assert [one["id"] for one in answer.json()["citations"]] == ids
    assert answer.headers["x-hatrack-grounding"] == ("ok" if ids else "empty")
    assert [query.threshold for query, _ in provider.asked] == [threshold]


async def test_the_minimum_score_is_the_embedded_stores_alone() -> None:
    """A score of another provider is on a scale that nobody here knows."""
    other = Told(RETURNS, ORDERS)
    answer = await world(Told(), min_score=0.6, faq=other).chat(grounding={"provider": "faq"})
    assert [one["id"] for one in answer.json()["citations"]] == ["p-1", "p-2"]
    assert other.asked[0][0].threshold is None


async def test_markers_count_where_the_template_or_the_conversation_shows_one() -> None:
    for template, question, used in (
        ("{passages}\n\n{question} Cite as [n].", "Hello", [True, True]),
        ("{passages}\n\n{question}", "Hello. Mark what you use, as in [1].", [True, True]),
        ("{passages}\n\n{question}", "Hello", [True, False]),
    ):
        made = world(Told(RETURNS, ORDERS))
        made.engine.chunks = [completion("So it is [2]. Within 45 days.")]
        messages = [{"role": "user", "content": question}]
        answer = await made.chat(grounding={**ASK, "template": template}, messages=messages)
        assert [one["used"] for one in answer.json()["citations"]] == used, (template, question)
