"""The learning curve: would more examples help?

The same held-out examples are answered by LoRAs that were trained on a quarter, a half and all of the examples. Smaller
parts are within the larger ones, and the comparison is paired question by question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from adapters.protocol.reports import ArmMean
from trainer.evaluate.scored_arms import ArmScores
from trainer.ladder.advice import difference, measured, whole_interval
from trainer.ladder.spec import JobOutcome, Row, TrainingKey
from trainer.runs.protocol import Frozen

NAMES: Final[dict[TrainingKey, str]] = {"quarter": "a quarter", "half": "a half", "lora": "all"}


class CurvePoint(Frozen):
    """A LoRA on a part of the examples. ``part``: in words."""

    part: str
    model: str
    examples: int
    mean: ArmMean


class LearningCurve(Frozen):
    """The points, the fewest examples first, and what they say."""

    points: tuple[CurvePoint, ...]
    sentence: str


def learning_curve(
    outcomes: Mapping[TrainingKey, JobOutcome], scores: Sequence[ArmScores], smallest: float
) -> LearningCurve | None:
    """The curve; None if no more than one part was measured.

    Args:
        outcomes: Of the trainings, by key.
        scores: The evaluations that asked their versions, under their keys.
        smallest: The smallest difference that matters, 0 to 1.
    """
    rows: dict[TrainingKey, Row] = {}
    for each in scores:
        for arm in each.arms:
            key = next((key for key in NAMES if key == arm.label and key in outcomes), None)
            if key is not None:
                rows[key] = ("lora", each, arm)
    measured_keys = [key for key in NAMES if key in rows]
    if len(measured_keys) < 2:
        return None
    points = tuple(
        CurvePoint(
            part=NAMES[key],
            model=str(outcomes[key].model),
            examples=outcomes[key].examples,
            mean=measured([rows[key]])[0].mean,
        )
        for key in measured_keys
    )
    return LearningCurve(points=points, sentence=_sentence(rows, measured_keys, outcomes, smallest))


def _sentence(
    rows: Mapping[TrainingKey, Row],
    keys: Sequence[TrainingKey],
    outcomes: Mapping[TrainingKey, JobOutcome],
    smallest: float,
) -> str:
    fewer, more = keys[-2:]
    gain = difference(rows[more], rows[fewer], whole_interval())
    span = f"{100 * gain.estimate:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    compared = f"{outcomes[more].examples} examples against {outcomes[fewer].examples} of them: {span}"
    if gain.low > 0:
        return f"More examples would probably help. {compared}."
    if gain.high < smallest:
        return f"More examples of this kind would hardly help. {compared}."
    return f"Whether more examples would help is open. {compared}."
