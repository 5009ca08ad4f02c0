"""Evaluations of rungs with known scores, for the tests of the advice, the costs and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.evaluate.scored_arms import ArmScores, ScoredArm
from trainer.ladder.spec import DataFacts, Row, RungKey

QUESTIONS = 120
NO_FACTS = DataFacts(examples=600)


def right_at(share: float, seed: int, questions: int = QUESTIONS) -> tuple[float, ...]:
    """Scores of 0 and 1 with this mean, at random questions."""
    scores = np.zeros(questions)
    scores[: round(share * questions)] = 1
    return tuple(np.random.default_rng(seed).permutation(scores).tolist())


def scored(
    rungs: Mapping[RungKey, Sequence[float]], *, control: float = 0.1, seconds: Mapping[RungKey, float] | None = None
) -> ArmScores:
    """One evaluation of these rungs; each request of one takes a second, or what ``seconds`` says."""
    taken = {key: (seconds or {}).get(key, 1.0) for key in rungs}
    questions = len(next(iter(rungs.values())))
    return ArmScores(
        metric="exact_match",
        binary=True,
        questions=tuple(f"q{number}" for number in range(questions)),
        asked=tuple(f"question {number}" for number in range(questions)),
        references=tuple(f"answer {number}" for number in range(questions)),
        arms=tuple(
            ScoredArm(
                label=key,
                model=f"support@{number}",
                scores=tuple(scores),
                control=control,
                answers=tuple(f"answer {at}" for at in range(questions)),
                prompt_tokens=100.0 * number,
                completion_tokens=10.0,
                seconds=taken[key],
                slot_share=taken[key] / sum(taken.values()),
                requests=questions,
            )
            for number, (key, scores) in enumerate(rungs.items(), start=1)
        ),
        wall_seconds=60.0,
    )


def rows(scores: ArmScores) -> list[Row]:
    """The rungs of one evaluation, in its order."""
    return [(arm.label, scores, arm) for arm in scores.arms]  # type: ignore[misc]
