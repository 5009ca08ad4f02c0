"""Comparisons made of numbers, for all that begins after the asking."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from trainer.evaluate.arms import Arm, ChatMessage, Question
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.control_arms import ControlArm
from trainer.evaluate.forgetting import AreaResult, Forgetting, SuitePart, SuiteState
from trainer.evaluate.paired_difference import IntervalMethod

Runs = Sequence[Sequence[float]]


def asked(number: int) -> str:
    """The text of a question that is no near-duplicate of another number's."""
    return f"question {number} {subject(number)}?"


def subject(number: int) -> str:
    """Letters that share nothing with those of another number."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:12].translate(str.maketrans("0123456789", "ghijklmnop"))


def questions(count: int) -> tuple[Question, ...]:
    return tuple(
        Question(id=str(at), turns=(ChatMessage(role="user", content=asked(at)),), reference=f"answer {at}")
        for at in range(count)
    )


def comparison(arms: Mapping[str, Runs], *, binary: bool = True) -> Comparison:
    """Each arm with its runs' scores."""
    count = len(next(iter(arms.values()))[0])
    return Comparison(
        metric="exact_match" if binary else "rouge_l",
        binary=binary,
        questions=questions(count),
        results=tuple(
            ArmResult(
                arm=Arm(label=label, model=label),
                answers=tuple(f"{label} on {at}" for at in range(count)),
                runs=tuple(tuple(float(value) for value in run) for run in runs),
            )
            for label, runs in arms.items()
        ),
    )


def likelier(found: Comparison, gain: float = 1.0, own: float = 0.3) -> Comparison:
    """The references are likelier under the first arm than under all others by `gain` nats a token, and by `own` after
    their own question; as the second measure of free text wants it."""
    first, count = found.results[0].arm.label, len(found.questions)
    hard = seeded(5).normal(4, 0.5, count)

    def row(level: float, seed: int) -> tuple[float, ...]:
        return tuple(float(value) for value in hard + level + seeded(seed).normal(0, 0.2, count))

    results = [
        result.model_copy(
            update={"nats": row(-gain, 6), "nats_elsewhere": row(own - gain, 7)}
            if result.arm.label == first
            else {"nats": row(0.0, 8)}
        )
        for result in found.results
    ]
    return found.model_copy(update={"results": tuple(results)})


def row(right: int, count: int) -> list[float]:
    """The first `right` of `count` examples are right."""
    return [1.0] * right + [0.0] * (count - right)


def form(count: int, score: float = 0.0) -> tuple[ControlArm, ControlArm]:
    """Both controls, the same on every example."""
    return (
        ControlArm(kind="constant", scores=(score,) * count, answer="yes"),
        ControlArm(kind="permuted", scores=(score,) * count),
    )


def part(state: SuiteState = "kept", loss: float = 0.01) -> SuitePart:
    return SuitePart(
        base=0.8,
        candidate=0.8 - loss,
        loss=loss,
        low=loss - 0.02,
        high=loss + 0.02,
        budget=0.05,
        items=100,
        state=state,
    )


def forgetting(accuracy: SuiteState = "kept", perplexity: SuiteState = "kept", chat: SuiteState = "kept") -> Forgetting:
    return Forgetting(
        suite="general",
        against="base",
        accuracy=part(accuracy),
        chat=part(chat),
        perplexity=part(perplexity),
        chance=0.25,
        areas=(AreaResult(area="knowledge", items=40, base=33, candidate=32, at_chance=False),),
        lost=("knowledge-1",),
        won=(),
    )


QUICK = IntervalMethod(resamples=400)
"""Enough for the tests' simulations."""


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
