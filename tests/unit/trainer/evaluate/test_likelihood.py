from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway, token
from tests.unit.trainer.evaluate.worlds import questions
from trainer.errors import AnswerUnreadable, ArmUnservable, EvaluationInvalid
from trainer.evaluate.arms import Arm, Prompt
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.likelihood import ContinuationBatch, HttpScorer, TextBatch

TUNED = Arm(label="tuned", model="voice@3", prompt=Prompt(system="Be kind."))


@pytest.fixture
def scorer(gateway: Gateway, tmp_path: Path) -> HttpScorer:
    return HttpScorer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "scores.jsonl", concurrency=3)


async def test_each_text_has_its_tokens_but_the_first_in_the_order_of_the_texts(
    gateway: Gateway, scorer: HttpScorer
) -> None:
    gateway.likely = {"voice@3": {"sea"}}
    ((one, other),) = await scorer.texts(TUNED, [TextBatch("p", ("the sea is", "wide blue"))])
    assert one.tokens == (token(" sea"), token(" is"))
    assert one.logprobs == (-0.1, -5.0)
    assert one.nats == pytest.approx(2.55)
    assert other.tokens == (token(" blue"),)


@pytest.mark.parametrize("no_token_ids", [False, True])
async def test_continuations_of_one_token_are_read_off_one_request_with_the_same_result(
    gateway: Gateway, scorer: HttpScorer, no_token_ids: bool
) -> None:
    gateway.likely, gateway.no_token_ids = {"voice@3": {"B"}}, no_token_ids
    (rows,) = await scorer.continuations(TUNED, [ContinuationBatch("q", "Which one ?", (" A", " B"))])
    assert [(row.tokens, row.logprobs) for row in rows] == [((token(" A"),), (-5.0,)), ((token(" B"),), (-0.1,))]
    asked = [body for path, body in gateway.requests if path == "/v1/completions"]
    assert [("prompt_logprobs" in body) for body in asked] == ([False, True] if no_token_ids else [False])


async def test_longer_continuations_are_scored_as_texts(gateway: Gateway, scorer: HttpScorer) -> None:
    gateway.likely = {"voice@3": {"blue"}}
    (rows,) = await scorer.continuations(TUNED, [ContinuationBatch("q", "the sea is", (" wide blue", " red"))])
    assert [row.logprobs for row in rows] == [(-5.0, -0.1), (-5.0,)]
    assert not any("logprob_token_ids" in body for _, body in gateway.requests)


async def test_a_reference_is_scored_behind_the_arms_prompt_and_alone(gateway: Gateway, scorer: HttpScorer) -> None:
    gateway.likely = {"voice@3": {"answer"}}
    (row,) = await scorer.references(TUNED, questions(1))
    assert row.tokens == (token(" answer"), token(" 0"))
    assert row.logprobs == (-0.1, -5.0)
    chats = [body for path, body in gateway.requests if path == "/v1/chat/completions"]
    assert chats[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert chats[0]["messages"][-1] == {"role": "assistant", "content": "answer 0"}
    assert (chats[0]["add_generation_prompt"], chats[0]["prompt_logprobs"]) == (False, 0)
    # passages would stand in front of the question here and not where its tokens are counted
    assert chats[0]["grounding"] is False


async def test_what_was_scored_is_not_scored_again(gateway: Gateway, scorer: HttpScorer) -> None:
    passages = [TextBatch(f"p{at}", (f"text {at}",)) for at in range(4)]
    await scorer.texts(TUNED, passages[:3])
    before, seen = len(gateway.requests), list[tuple[int, int]]()
    found = await scorer.texts(TUNED, passages, lambda done, total: seen.append((done, total)))
    assert len(gateway.requests) - before == 1
    assert seen == [(3, 4), (4, 4)]
    assert [rows[0].tokens for rows in found] == [(token(f" {at}"),) for at in range(4)]
    await scorer.texts(TUNED, [TextBatch("p0", ("another text",))])
    assert len(gateway.requests) - before == 2


async def test_a_deleted_version_is_reported_by_name(gateway: Gateway, scorer: HttpScorer) -> None:
    gateway.refused_models = {"voice@3": (409, "version_damaged", {})}
    with pytest.raises(ArmUnservable, match=r"'tuned' \(voice@3\) did not score p"):
        await scorer.texts(TUNED, [TextBatch("p", ("a b",))])


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"choices": []},
        {"choices": [{"index": 0, "prompt_logprobs": None}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"1": {"logprob": None}}]}]},
        {"choices": [{"index": 0, "prompt_logprobs": [None, {"1": {"logprob": 1e999}}]}]},
    ],
)
async def test_an_answer_without_numbers_is_no_answer(gateway: Gateway, scorer: HttpScorer, raw: Any) -> None:
    gateway.raw = raw
    with pytest.raises(AnswerUnreadable):
        await scorer.texts(TUNED, [TextBatch("p", ("a b",))])


async def test_outside_endpoints_are_not_asked_for_what_they_do_not_give(scorer: HttpScorer, gateway: Gateway) -> None:
    with pytest.raises(EvaluationInvalid, match="outside"):
        await scorer.references(Arm(label="o", model="m", endpoint="other"), questions(1))
    assert gateway.requests == []
