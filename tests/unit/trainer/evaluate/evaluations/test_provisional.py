"""Scores of a comparison while it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.evaluate import worlds
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import Arm
from trainer.evaluate.evaluations import provisional
from trainer.evaluate.evaluations.provisional import EVERY_S, FIRST_S, ProvisionalScores
from trainer.evaluate.evaluations.spec import ANSWERS, PROVISIONAL, Provisional
from trainer.evaluate.spec import EvaluationSpec, MetricOptions
from trainer.runs.directory import RunDirectory

HELD_OUT = worlds.questions(20)
ARMS = (Arm(label="base", model="tiny"), Arm(label="examples", model="support@1"))
COMPARED = EvaluationSpec(arms=ARMS, metric=MetricOptions(name="exact_match"))


class Asking:
    """A comparison under way, on a clock of its own."""

    def __init__(self, directory: Path, evaluation: EvaluationSpec = COMPARED) -> None:
        self.now, self.directory = 0.0, RunDirectory(directory)
        self.scores = ProvisionalScores(self.directory, evaluation, HELD_OUT, clock=lambda: self.now)

    def answer(self, arm: str, *numbers: int, text: str | None = None) -> None:
        with self.directory.path(ANSWERS).open("ab") as file:
            for number in numbers:
                said = HELD_OUT[number].reference if text is None else text
                answer = Answer(arm=arm, example=str(number), repeat=0, request="r", text=said)
                file.write(answer.model_dump_json(exclude_defaults=True).encode() + b"\n")

    def at(self, seconds: float) -> Provisional | None:
        self.now = seconds
        self.scores.answered()
        self.scores.wait()
        return self.directory.read(PROVISIONAL, Provisional)


def test_scores_so_far_are_over_what_every_arm_has_answered(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    asking.answer("base", *range(12), text="no")
    asking.answer("examples", *range(2, 10))
    assert asking.at(FIRST_S - 1) is None
    scores = asking.at(FIRST_S)
    assert scores is not None
    assert (scores.questions, scores.of) == (8, 20)
    assert [(mean.label, mean.mean) for mean in scores.means] == [("base", 0.0), ("examples", 1.0)]
    assert scores.means[0].high > 0, "with the interval that so few give"
    asking.answer("examples", 0)
    assert asking.at(FIRST_S + EVERY_S - 1) == scores
    again = asking.at(FIRST_S + EVERY_S)
    assert again is not None
    assert again.questions == 9


def test_a_line_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    asking.answer("base", *range(6))
    asking.answer("examples", *range(6))
    with asking.directory.path(ANSWERS).open("ab") as file:
        file.write(b'{"arm":"examples","example":"6"')
    scores = asking.at(FIRST_S)
    assert scores is not None
    assert scores.questions == 6


@pytest.mark.parametrize("answered", [0, 4])
def test_a_few_questions_show_nothing(tmp_path: Path, answered: int) -> None:
    asking = Asking(tmp_path)
    for arm in ARMS:
        asking.answer(arm.label, *range(answered))
    assert asking.at(FIRST_S) is None


def test_of_a_candidate_nothing_is_shown_before_its_look_is_counted(tmp_path: Path) -> None:
    judged = COMPARED.model_copy(update={"candidate": "examples", "bases": ("base",)})
    asking = Asking(tmp_path, judged)
    for arm in ARMS:
        asking.answer(arm.label, *range(20))
    assert asking.at(FIRST_S) is None


def test_a_fault_in_them_does_not_end_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    asking = Asking(tmp_path)
    for arm in ARMS:
        asking.answer(arm.label, *range(20))
    monkeypatch.setattr(provisional, "compared_so_far", fail)
    assert asking.at(FIRST_S) is None
    monkeypatch.undo()
    assert asking.at(FIRST_S + EVERY_S) is not None
