from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import questions
from trainer.errors import AnswerRefused, ArmVersionChanged, EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import HttpAnswerer, OnProgress
from trainer.evaluate.compare import Comparison, compare
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.likelihood import HttpScorer, ReplyBatch, TextBatch, TokenLogprobs
from trainer.evaluate.metrics.match import Contains, ExactMatch
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.metrics.style import Length
from trainer.evaluate.paired_difference import IntervalMethod
from trainer.evaluate.second_measure import likelihood

TUNED, BASE = Arm(label="tuned", model="voice@3"), Arm(label="base", model="smol")


def say(model: str, asked: str) -> str:
    number = asked.split()[1].rstrip("?")
    return f"answer {number}" if model == "voice@3" else f"I think that it is answer {number}, but who knows?"


@pytest.fixture
def answerer(gateway: Gateway, tmp_path: Path) -> HttpAnswerer:
    gateway.say = say
    return HttpAnswerer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "answers.jsonl")


async def test_every_answer_is_scored_by_every_metric(answerer: HttpAnswerer) -> None:
    found = await compare(
        [TUNED, BASE], questions(5), ExactMatch(), answerer=answerer, secondary=[Contains(), Length()]
    )
    tuned, base = found.result("tuned"), found.result("base")
    assert (found.metric, found.binary) == ("exact_match", True)
    assert (tuned.runs, base.runs) == (((1.0,) * 5,), ((0.0,) * 5,))
    assert (tuned.mean, base.mean) == (1.0, 0.0)
    assert base.secondary == {"contains": (1.0,) * 5, "length_words": (10.0,) * 5}
    assert (tuned.cut, base.cut) == (0, 5)
    assert (tuned.prompt_tokens, tuned.completion_tokens) == (35, 15)
    assert Comparison.model_validate_json(found.model_dump_json()) == found


async def test_later_runs_are_over_the_first_examples(gateway: Gateway, answerer: HttpAnswerer) -> None:
    stages: list[tuple[str, int, int]] = []
    found = await compare(
        [TUNED],
        questions(6),
        ExactMatch(),
        answerer=answerer,
        repeats=3,
        repeated=2,
        on_stage=lambda *stage: stages.append(stage),
    )
    assert [len(run) for run in found.result("tuned").runs] == [6, 2, 2]
    assert len(gateway.asked()) == 10
    assert stages[-1] == ("asking", 10, 10)


async def test_the_references_likelihood_is_measured_where_it_can_be(
    gateway: Gateway, answerer: HttpAnswerer, tmp_path: Path
) -> None:
    gateway.likely = {"voice@3": {"answer", "0", "1", "2"}}
    endpoint = Endpoint(gateway.url, SecretStr(KEY))
    scorer = HttpScorer(endpoint, tmp_path / "scores.jsonl")
    outside = Arm(label="outside", model="big", endpoint="big")
    asked = HttpAnswerer(endpoint, tmp_path / "answers.jsonl", endpoints={"big": endpoint})
    found = await compare([TUNED, BASE, outside], questions(3), ExactMatch(), answerer=asked, scorer=scorer)
    assert found.result("tuned").nats == pytest.approx((0.1, 0.1, 0.1))
    assert found.result("base").nats == pytest.approx((5.0, 5.0, 5.0))
    assert found.result("outside").nats is None


class Refusing:
    """Scores every reference with 1 nat a token, and refuses some of those that are asked after other questions."""

    def __init__(self, refused: Callable[[Question], str | None]) -> None:
        self._refused = refused

    async def texts(
        self, arm: Arm, passages: Sequence[TextBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        raise AssertionError

    async def replies(
        self, arm: Arm, batches: Sequence[ReplyBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        raise AssertionError

    async def references(
        self, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
    ) -> list[TokenLogprobs]:
        for question in held_out:
            code = self._refused(question) if question.id.endswith("/elsewhere") else None
            if code is not None:
                raise AnswerRefused(400, code, f"refused: {code}")
        return [TokenLogprobs(tokens=(1,), logprobs=(-1.0,)) for _ in held_out]


async def test_pairs_of_examples_that_do_not_fit_are_left_out(answerer: HttpAnswerer) -> None:
    """One long answer, behind another's question, is no reason to measure nothing."""
    scorer = Refusing(lambda question: "context_length_exceeded" if question.reference == "answer 3" else None)
    found = await compare(
        [TUNED, BASE], questions(40), RougeL(), answerer=answerer, scorer=scorer, elsewhere=TUNED.label
    )
    tuned = found.result("tuned")
    assert tuned.nats_elsewhere == (*(1.0,) * 3, None, *(1.0,) * 36)
    measured = likelihood(found, "tuned", ["base"], IntervalMethod(resamples=200))
    assert measured is not None
    assert (measured.left_out, measured.own_question.examples, measured.over_base.examples) == (1, 39, 40)
    sentence = verdict_text.likelihood(measured.over_base, measured.own_question, measured.left_out, "open")
    assert "(over 39 pairs of examples; 1 were left out" in sentence
    nothing = tuned.model_copy(update={"nats_elsewhere": (None,) * 40})
    no_pair = found.model_copy(update={"results": (nothing, found.result("base"))})
    assert likelihood(no_pair, "tuned", ["base"], IntervalMethod(resamples=200)) is None


async def test_another_refusal_of_a_pair_ends_the_comparison_with_its_reason(answerer: HttpAnswerer) -> None:
    scorer = Refusing(lambda _: "grammar_too_complex")
    with pytest.raises(AnswerRefused, match="grammar_too_complex"):
        await compare([TUNED], questions(5), RougeL(), answerer=answerer, scorer=scorer, elsewhere=TUNED.label)


async def test_an_alias_that_moves_is_noticed(gateway: Gateway, answerer: HttpAnswerer) -> None:
    live = Arm(label="live", model="voice:live")
    gateway.digests = {"voice:live": ["1"]}
    found = await compare([live], questions(4), ExactMatch(), answerer=answerer)
    assert (found.result("live").version, found.result("live").digest) == ("voice:live@1", "1")
    gateway.digests = {"voice:live": ["2"]}
    with pytest.raises(ArmVersionChanged, match="voice:live@1, voice:live@2"):
        await compare([live], questions(5), ExactMatch(), answerer=answerer)


@pytest.mark.parametrize(
    ("arms", "held_out", "repeats"),
    [
        ([], questions(1), 1),
        ([TUNED], (), 1),
        ([TUNED, TUNED], questions(1), 1),
        ([TUNED], questions(1) * 2, 1),
        ([TUNED], questions(1), 0),
    ],
)
async def test_what_cannot_be_compared_is_refused(
    answerer: HttpAnswerer, arms: Sequence[Arm], held_out: Sequence[Question], repeats: int
) -> None:
    with pytest.raises(EvaluationInvalid):
        await compare(arms, held_out, ExactMatch(), answerer=answerer, repeats=repeats)


async def test_an_arm_that_is_not_there_is_named(answerer: HttpAnswerer) -> None:
    found = await compare([TUNED], questions(1), ExactMatch(), answerer=answerer)
    with pytest.raises(EvaluationInvalid, match="'base'; known: tuned"):
        found.result("base")
