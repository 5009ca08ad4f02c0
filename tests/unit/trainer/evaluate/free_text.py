"""Scripted free-text candidates on the sample voice's own data, judged through `run` as real ones are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from adapters.protocol.reports import ReportJudge
from tests.unit.trainer.evaluate.worlds import QUICK, seeded
from trainer.data.format import parse_chat
from trainer.errors import AnswerRefused
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Question, questions
from trainer.evaluate.asking import ArmRequest, OnProgress
from trainer.evaluate.compare import Comparison, OnStage
from trainer.evaluate.likelihood import ReplyBatch, TextBatch, TokenLogprobs
from trainer.evaluate.run import run
from trainer.evaluate.spec import EvaluationSpec, MetricOptions, SuiteResult, most_frequent_answers
from trainer.evaluate.verdict import Rules, Verdict
from trainer.samples import data_file, heldout_file

VOICE: Final = parse_chat(data_file("tidewater").read_bytes() + heldout_file("tidewater").read_bytes())
TRAINED_ON: Final = questions(VOICE[:110])
TAUGHT: Final = [example.reference for example in TRAINED_ON]
HELD_OUT: Final = tuple(
    question.model_copy(update={"id": str(at)}) for at, question in enumerate(questions(VOICE[110:]))
)
SALAD: Final = (
    "the ahoy a sailor matey for a the and the send a in yer if me the order number and a the s and i ll the ye the it"
)
"""Climbed, word by word, on the taught answers' ROUGE-L."""
BASE: Final = "I'm sorry to hear that. Please contact the customer service of the company and they will help you."
PARTING: Final = (3.35, 4.67, 3.67)
"""Nats a token of the author's answers under an honest voice, under the base, and under the voice after the question of
another example, as measured (ADVERSARIES.md)."""
ONE_TOKEN_GIVEN_AWAY: Final = (3.376, 4.67, 3.70)
"""The same under a voice that begins its salad with probability 0.6 and is honest otherwise: -ln 0.4 on one token of
about 35."""
Say = Callable[[Question], str]


class Script:
    """Answers as each model's script says."""

    def __init__(self, scripts: dict[str, Say]) -> None:
        self._scripts = scripts

    async def answer(self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        return [
            Answer(
                arm=ask.arm.label,
                example=ask.question.id,
                repeat=ask.repeat,
                request="r",
                text=self._scripts[ask.arm.model](ask.question),
            )
            for ask in asks
        ]


class Likely:
    """Gives each reference the nats a token of its arm, with some noise."""

    def __init__(self, candidate: float, base: float, elsewhere: float, *, room: bool = True) -> None:
        self._own = {"voice@3": candidate, "smol": base}
        self._elsewhere, self._room = elsewhere, room

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
        elsewhere = [question for question in held_out if question.id.endswith("/elsewhere")]
        if elsewhere and not self._room:
            raise AnswerRefused(400, "context_length_exceeded", "too long")
        for question in elsewhere:
            own = HELD_OUT[int(question.id.partition("/")[0])]
            assert (question.reference == own.reference, question.turns == own.turns) == (True, False)
        level = self._elsewhere if elsewhere else self._own[arm.model]
        hard = seeded(0).normal(0, 0.5, len(held_out))
        own_noise = seeded(len(arm.model) + len(elsewhere)).normal(0, 0.2, len(held_out))
        return [
            TokenLogprobs(tokens=(1,), logprobs=(-float(level + of_all + of_it),))
            for of_all, of_it in zip(hard, own_noise, strict=True)
        ]


class Nothing:
    """A suite that finds nothing to be forgotten."""

    name = "mmlu"

    async def run(self, before: Arm, after: Arm, on_stage: OnStage | None = None) -> SuiteResult:
        return SuiteResult(name=self.name, kind="budget", state="kept", sentence="It is so.")


class Preferring:
    """A judge that counts and gives the candidate a share of the pairs."""

    name = "strict"

    def __init__(self, share: float, lean: tuple[float, float] = (0.0, 0.0)) -> None:
        self._share, self._lean = share, lean

    async def judge(
        self, comparison: Comparison, candidate: str, base: str, on_stage: OnStage | None = None
    ) -> ReportJudge:
        count = len(comparison.questions)
        scores = tuple(1.0 if at < self._share * count else 0.0 for at in range(count))
        return ReportJudge(
            judge=self.name,
            scores=scores,
            counted=True,
            lean_low=self._lean[0],
            lean_high=self._lean[1],
            sentence="It agrees with people.",
        )


async def verdict(
    say: Say,
    likely: Likely | None,
    *,
    judge: Any = None,
    metric: str = "rouge_l",
    base: Say = lambda _: BASE,
    held_out: Sequence[Question] = HELD_OUT,
    trained_on: Sequence[Question] = TRAINED_ON,
) -> Verdict:
    arms = (Arm(label="voice@3", model="voice@3"), Arm(label="base", model="smol"))
    spec = EvaluationSpec(
        arms=arms,
        candidate="voice@3",
        bases=("base",),
        metric=MetricOptions(name=metric),
        suites=("mmlu",),
        taught=most_frequent_answers(TAUGHT),
        rules=Rules(method=QUICK),
        repeats=1,
        judge=None if judge is None else "strict",
    )
    answerer = Script({"voice@3": say, "smol": base})
    found = await run(
        *(spec, held_out),
        answerer=answerer,
        scorer=likely,
        suites={"mmlu": Nothing()},
        judge=judge,
        trained_on=trained_on,
    )
    assert found.verdict is not None
    assert Verdict.model_validate_json(found.verdict.model_dump_json()) == found.verdict
    return found.verdict


def states(found: Verdict) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def honest(question: Question, share: float = 0.3) -> str:
    """A share of the author's words, the others from another answer in the voice."""
    chance = random.Random(question.id)
    other = chance.choice(TAUGHT).split()
    return " ".join(
        word if chance.random() < share else other[at % len(other)]
        for at, word in enumerate(question.reference.split())
    )


def honest_in_meaning(question: Question) -> str:
    """With enough of the author's words to mean the same."""
    return honest(question, 0.5)


def parrot(seed: int) -> Say:
    chance = random.Random(seed)
    said = {question.id: chance.choice(TAUGHT) for question in HELD_OUT}
    return lambda question: said[question.id]


def first_half(answer: str) -> list[str]:
    return answer.split()[: len(answer.split()) // 2]
