"""Arms of the base that could not be the strongest any more are stopped, and the verdict is what it would have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.unit.trainer.evaluate.worlds import questions, seeded
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import ArmRequest, OnProgress
from trainer.evaluate.compare import Comparison, compare
from trainer.evaluate.looks import looks_of
from trainer.evaluate.metrics.match import ExactMatch
from trainer.evaluate.metrics.overlap import RougeL
from trainer.evaluate.paired_difference import strongest
from trainer.evaluate.turns import BLOCK

COUNT = 150
RIVALS = ("plain", "told", "shown")
ARMS = tuple(Arm(label=label, model=label) for label in ("tuned", *RIVALS))


class Knowing:
    """Answers right where an arm knows the answer; counts what each arm is asked."""

    def __init__(self, knows: Callable[[str, int], bool], digest: str | None = None) -> None:
        self._knows, self._digest = knows, digest
        self.asked: Counter[str] = Counter()

    async def answer(self, requests: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        if on_progress is not None:
            on_progress(len(requests), len(requests))
        return [self._answer(request) for request in requests]

    def _answer(self, request: ArmRequest) -> Answer:
        label, question = request.arm.label, request.question
        self.asked[label] += 1
        return Answer(
            arm=label,
            example=question.id,
            repeat=request.repeat,
            request="",
            text=question.reference if self._knows(label, int(question.id)) else "who knows",
            digest=self._digest,
        )


def first(**right: int) -> Callable[[str, int], bool]:
    """Each arm knows so many of the first answers."""
    return lambda label, number: number < right[label]


async def asked(answerer: Knowing, held_out: Sequence[Question] = questions(COUNT), **options: object) -> Comparison:
    wanted = {"rivals": RIVALS, "repeats": 2, "repeated": 10} | options
    return await compare(ARMS, held_out, ExactMatch(), answerer=answerer, **wanted)  # type: ignore[arg-type]


async def test_a_rival_that_cannot_become_the_strongest_is_asked_no_more() -> None:
    answerer = Knowing(first(tuned=140, plain=0, told=30, shown=90))
    found = await asked(answerer)
    assert [result.arm.label for result in found.results] == ["tuned", "shown"]
    assert {arm.arm.label: arm.answered for arm in found.stopped} == {"plain": 2 * BLOCK, "told": 3 * BLOCK}
    assert {arm.arm.label: round(COUNT * arm.max_mean) for arm in found.stopped} == {"plain": 86, "told": 84}
    assert answerer.asked == {"tuned": COUNT + 10, "shown": COUNT + 10, "plain": 2 * BLOCK, "told": 3 * BLOCK}
    assert found.finished(RIVALS) == ("shown",)


async def test_one_that_might_still_be_as_good_is_asked_everything() -> None:
    answerer = Knowing(first(tuned=COUNT, plain=60, told=0, shown=60))
    found = await asked(answerer)
    assert [arm.arm.label for arm in found.stopped] == ["told"]
    assert strongest(found, found.finished(RIVALS)) == "plain", "the first of two that are equal, as ever"
    assert (answerer.asked["plain"], answerer.asked["shown"]) == (COUNT + 10, COUNT)


@pytest.mark.parametrize("seed", range(12))
async def test_the_strongest_and_its_scores_are_those_of_asking_everything(seed: int) -> None:
    rng = seeded(seed)
    known = {arm.label: rng.random(COUNT) < rng.random() for arm in ARMS}

    def knows(label: str, number: int) -> bool:
        return bool(known[label][number])

    # some questions are variants of one customer's
    groups = rng.integers(0, 60, COUNT)
    held_out = [
        question.model_copy(update={"group": f"customer {group}" if group < 20 else None})
        for question, group in zip(questions(COUNT), groups.tolist(), strict=True)
    ]
    short, whole = await asked(Knowing(knows), held_out), await asked(Knowing(knows), held_out, rivals=())
    best = strongest(short, short.finished(RIVALS))
    assert best == strongest(whole, RIVALS)
    for label in ("tuned", best):
        assert short.result(label).runs == whole.result(label).runs
        assert short.mean(label) == whole.mean(label)
    for stopped in short.stopped:
        assert whole.mean(stopped.arm.label) <= stopped.max_mean < whole.mean(best)


async def test_graded_scores_stop_nobody_but_only_what_counts_is_asked_again() -> None:
    answerer = Knowing(first(tuned=140, plain=0, told=30, shown=90))
    options = {"rivals": RIVALS, "repeats": 3, "repeated": 10}
    found = await compare(ARMS, questions(COUNT), RougeL(), answerer=answerer, **options)  # type: ignore[arg-type]
    assert found.stopped == ()
    assert answerer.asked == {"tuned": COUNT + 20, "plain": COUNT, "told": COUNT, "shown": COUNT + 20}


async def test_progress_ends_with_all_that_was_planned() -> None:
    stages: list[tuple[str, int, int]] = []
    await asked(Knowing(first(tuned=140, plain=0, told=30, shown=90)), on_stage=lambda *stage: stages.append(stage))
    assert stages[-1] == ("asking", 2 * (COUNT + 10) + 5 * BLOCK, 2 * (COUNT + 10) + 5 * BLOCK)
    assert all(done <= total for _, done, total in stages)


async def test_a_version_that_was_stopped_was_looked_at() -> None:
    found = await asked(Knowing(first(tuned=140, plain=0, told=30, shown=90), digest="d"))
    assert [look.version for look in looks_of(found, "tuned", None)] == ["d tuned", "d shown", "d plain", "d told"]
