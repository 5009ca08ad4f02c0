"""How likely an arm finds the authors' answers, after their own questions and after others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from trainer.errors import AnswerRefused
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import OnProgress
from trainer.evaluate.control_arms import derangements
from trainer.evaluate.likelihood import ReplyBatch, Scorer
from trainer.evaluate.statistics.paired import Units

CONTEXT_EXCEEDED: Final = "context_length_exceeded"
"""The gateway's error code for a prompt that does not fit into the context."""


async def nats_of_references(
    scorer: Scorer, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None
) -> tuple[float, ...]:
    """Mean nats per token of each reference after its own question."""
    return tuple(row.nats for row in await scorer.references(arm, held_out, on_progress))


async def nats_elsewhere(
    scorer: Scorer,
    arm: Arm,
    held_out: Sequence[Question],
    *,
    seed: int,
    units: Units | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[float | None, ...]:
    """Mean nats per token of each reference after the question of another unit; None for those that do not fit.

    Args:
        scorer: Measures them.
        arm: The arm.
        held_out: Two questions or more.
        seed: Decides which question each reference follows.
        units: Which examples are not independent; None if all are.
        on_progress: Called with the number of references so far and of all.
    """
    (sources,) = derangements(len(held_out), 1, seed, units)
    reassigned = [
        Question(
            id=f"{question.id}/elsewhere",
            turns=held_out[source].turns,
            reference=question.reference,
            tools=held_out[source].tools,
            reference_calls=question.reference_calls,
        )
        for source, question in zip(sources, held_out, strict=True)
    ]
    try:
        return await nats_of_references(scorer, arm, reassigned, on_progress)
    except AnswerRefused as error:
        if error.answer_code != CONTEXT_EXCEEDED:
            raise
    nats: list[float | None] = []
    for question in reassigned:  # another example's question and this answer may not fit into the context together
        try:
            nats += await nats_of_references(scorer, arm, [question], None)
        except AnswerRefused as error:
            if error.answer_code != CONTEXT_EXCEEDED:
                raise
            nats.append(None)
        if on_progress is not None:
            on_progress(len(nats), len(reassigned))
    return tuple(nats)


async def prefers(
    scorer: Scorer, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
) -> tuple[float, ...]:
    """For each question 1 if the arm finds the reference more likely than the rejected answer, 0 if less, ½ if equally.

    Log-probabilities of whole answers, as in DPO's objective: a longer one is less likely under every arm alike.
    """
    batches = [
        ReplyBatch(f"pair/{question.id}", question, (question.reference.strip(), (question.rejected or "").strip()))
        for question in held_out
    ]
    scores = []
    for preferred, rejected in await scorer.replies(arm, batches, on_progress):
        gain = sum(preferred.logprobs) - sum(rejected.logprobs)
        scores.append(0.5 if gain == 0 else float(gain > 0))
    return tuple(scores)
