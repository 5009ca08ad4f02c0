"""Full fine-tuning is named where its signs are there, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.protocol.reports import ArmMean
from trainer.ladder.advice import Advice
from trainer.ladder.curve import CurvePoint, LearningCurve, full_fine_tuning

BELOW = ArmMean(label="lora", mean=0.80, low=0.76, high=0.84, examples=300)
LORA = Advice(word="fine_tune", rung="lora", sentence="Fine-tune.")


def curve(more: Any = "no", examples: int = 2000) -> LearningCurve:
    points = tuple(
        CurvePoint(part=part, model="support@2", examples=number, mean=BELOW)
        for part, number in (("a half", examples // 2), ("all", examples))
    )
    return LearningCurve(points=points, more=more, sentence="More examples of this kind would hardly help.")


def test_a_lora_that_many_examples_leave_below_the_target_is_a_sign() -> None:
    sentence = full_fine_tuning(LORA, BELOW, curve(), 0.9)
    assert sentence is not None
    assert "the LoRA stays below the target with 2000 examples" in sentence
    assert "not offered" in sentence


@pytest.mark.parametrize(
    ("advice", "mean", "learning", "target"),
    [
        (LORA, BELOW, curve(), None),
        (LORA, BELOW, curve(), 0.84),
        (LORA, BELOW, curve("help"), 0.9),
        (LORA, BELOW, curve("open"), 0.9),
        (LORA, BELOW, curve(None), 0.9),
        (LORA, BELOW, curve(examples=998), 0.9),
        (LORA, BELOW, None, 0.9),
        (LORA, None, curve(), 0.9),
        (LORA.model_copy(update={"word": "examples", "rung": "examples"}), BELOW, curve(), 0.9),
    ],
    ids=[
        *("no target", "the target may be reached", "more data would help", "that is open", "that was not measured"),
        *("few examples", "no curve", "no rung", "a prompt does as well"),
    ],
)
def test_without_one_of_them_it_is_not_named(
    advice: Advice, mean: ArmMean | None, learning: LearningCurve | None, target: float | None
) -> None:
    assert full_fine_tuning(advice, mean, learning, target) is None
