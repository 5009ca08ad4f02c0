"""In which order arms are asked, and which need not be asked everything.

Of the base's arms only the strongest one counts. The one with the best prompt is asked first. Another one is stopped as
soon as it could not be the strongest even if all its other answers were right: then the strongest arm, its scores and
every number of the verdict are what they would have been. Nothing is estimated from the first answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import Answerer, ArmRequest, OnProgress

BLOCK: Final = 32
"""Questions that a rival is asked before it is known whether to go on."""
TOLERANCE: Final = 1e-9


@dataclass(slots=True)
class ArmAnswers:
    """Answers by the arm's label, in the order of the questions, later runs after the first.

    ``stopped``: of each arm that was stopped, the mean score that it would have had if all its other answers were
    right.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)


async def ask_in_turn(
    arms: Sequence[Arm],
    held_out: Sequence[Question],
    answerer: Answerer,
    rivals: Sequence[str],
    *,
    may_stop: bool,
    max_mean: Callable[[Sequence[Answer]], float],
    repeats: int,
    repeated: int | None,
    on_progress: OnProgress | None,
) -> ArmAnswers:
    """Ask every arm every question, but for rivals that could not be the strongest any more.

    Arms that are asked the same questions are asked concurrently, so that load affects them equally.

    Args:
        arms: With unique labels.
        held_out: The questions.
        answerer: Asks them.
        rivals: Labels of arms of which only the strongest matters; the last one is asked first.
        may_stop: Whether rivals may be stopped.
        max_mean: The mean score of answers to the first questions, as if all other answers were right.
        repeats, repeated: See `compare`. Later runs are only of the strongest rival, and of arms that are no rivals.
        on_progress: Called with the number of answers so far and the number that is planned.
    """
    work = _Asking(answerer, on_progress, len(arms) * len(held_out))
    leader = rivals[-1] if rivals else None
    later = [arm for arm in arms if may_stop and arm.label in rivals and arm.label != leader]
    await work.ask([arm for arm in arms if arm not in later], held_out)
    for start in range(0, len(held_out), BLOCK):
        best = max((max_mean(work.received.answers[label]) for label in _complete(rivals, work, held_out)), default=0.0)
        for arm in list(later):
            possible = max_mean(work.received.answers.get(arm.label, ()))
            if possible < best - TOLERANCE:
                work.stop(arm, possible, len(held_out) - start)
                later.remove(arm)
        await work.ask(later, held_out[start : start + BLOCK])
    complete = {label: max_mean(work.received.answers[label]) for label in rivals if label not in work.received.stopped}
    strongest = max(complete, key=lambda label: complete[label], default=None)
    again = [arm for arm in arms if arm.label not in rivals or arm.label == strongest]
    subset = held_out[:repeated]
    work.plan((repeats - 1) * len(subset) * len(again))
    for repeat in range(1, repeats):
        await work.ask(again, subset, repeat)
    return work.received


def _complete(rivals: Sequence[str], work: _Asking, held_out: Sequence[Question]) -> list[str]:
    return [label for label in rivals if len(work.received.answers.get(label, ())) == len(held_out)]


class _Asking:
    """Asks arms, and counts what is planned and done."""

    def __init__(self, answerer: Answerer, on_progress: OnProgress | None, planned: int) -> None:
        self.received = ArmAnswers()
        self._answerer, self._on_progress = answerer, on_progress
        self._planned, self._done = planned, 0

    async def ask(self, arms: Sequence[Arm], held_out: Sequence[Question], repeat: int = 0) -> None:
        requests = [ArmRequest(arm, question, repeat) for question in held_out for arm in arms]
        if not requests:
            return
        answers = await self._answerer.answer(requests, self._report)
        self._done += len(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.received.answers.setdefault(request.arm.label, []).append(answer)

    def plan(self, more: int) -> None:
        self._planned += more

    def stop(self, arm: Arm, max_mean: float, left: int) -> None:
        self.received.stopped[arm.label] = max_mean
        self._planned -= left

    def _report(self, done: int, _: int) -> None:
        if self._on_progress is not None:
            self._on_progress(self._done + done, self._planned)
