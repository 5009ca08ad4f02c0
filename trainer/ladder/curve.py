"""The learning curve: would more examples help, or cleaner ones?

The same held-out examples are answered by LoRAs that were trained on a quarter, a half and all of the examples. Smaller
parts are within the larger ones, and the comparison is paired question by question. Beside the random half stands the
half with the fewest findings of the data report: of as many examples, what is the difference that cleaner ones make?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from adapters.protocol.reports import ArmDifference, ArmMean
from trainer.evaluate.scored_arms import ArmScores
from trainer.ladder.advice import Advice, difference, measured, whole_interval
from trainer.ladder.spec import JobOutcome, Row, TrainingKey
from trainer.ladder.wording import title
from trainer.runs.protocol import Frozen

NAMES: Final[dict[TrainingKey, str]] = {"quarter": "a quarter", "half": "a half", "lora": "all"}
CLEANEST: Final = "cleanest_half"
FULL_FINE_TUNING_EXAMPLES: Final = 1000
"""Training examples below which full fine-tuning is not named: a choice, since few are learnt by heart by so many
weights."""
Change = Literal["help", "no", "open"]
"""What a change of the examples would do, as far as that is shown."""
BOTH: Final[dict[tuple[Change, Change], str]] = {
    ("help", "help"): "Both more examples and cleaner ones would probably help",
    ("help", "no"): "More examples would probably help, cleaner ones hardly",
    ("help", "open"): "More examples would probably help; whether cleaner ones would is open",
    ("no", "help"): "Cleaner examples would probably help, more of this kind hardly",
    ("no", "no"): "Neither more examples of this kind nor cleaner ones would help much",
    ("no", "open"): "More examples of this kind would hardly help; whether cleaner ones would is open",
    ("open", "help"): "Cleaner examples would probably help; whether more would is open",
    ("open", "no"): "Cleaner examples would hardly help; whether more would is open",
    ("open", "open"): "Whether more examples or cleaner ones would help is open",
}
"""The sentence, by what more and what cleaner examples would do."""


class CurvePoint(Frozen):
    """A LoRA on a part of the examples. ``part``: in words."""

    part: str
    model: str
    examples: int
    mean: ArmMean


class LearningCurve(Frozen):
    """What the examples' number and cleanness do.

    Attributes:
        points: The random parts, the fewest examples first.
        more: Whether more examples would help, by the two largest parts; None if only one was measured.
        cleanest: The cleanest half; None if it was not measured.
        cleaner: How much higher it scores than the random half; None if that was not measured.
        against_all: The same against all examples.
        sentence: What they say.
    """

    points: tuple[CurvePoint, ...]
    more: Change | None = None
    cleanest: CurvePoint | None = None
    cleaner: ArmDifference | None = None
    against_all: ArmDifference | None = None
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
            key = next((key for key in (*NAMES, CLEANEST) if key == arm.label and key in outcomes), None)
            if key is not None:
                rows[key] = ("lora", each, arm)
    if len(rows) < 2:
        return None
    measured_keys = [key for key in NAMES if key in rows]

    def point(key: TrainingKey, part: str) -> CurvePoint:
        outcome = outcomes[key]
        mean = measured([rows[key]])[0].mean
        return CurvePoint(part=part, model=str(outcome.model), examples=outcome.examples, mean=mean)

    cleaner = _difference(rows, CLEANEST, "half")
    against_all = _difference(rows, CLEANEST, "lora")
    more = _difference(rows, *reversed(measured_keys[-2:])) if len(measured_keys) > 1 else None
    return LearningCurve(
        points=tuple(point(key, NAMES[key]) for key in measured_keys),
        more=None if more is None else _change(more, smallest),
        cleanest=point(CLEANEST, "the cleanest half") if CLEANEST in rows else None,
        cleaner=cleaner,
        against_all=against_all,
        sentence=_sentence(measured_keys, outcomes, more, cleaner, against_all, smallest),
    )


def full_fine_tuning(
    advice: Advice, mean: ArmMean | None, curve: LearningCurve | None, target: float | None
) -> str | None:
    """A sentence where the signs of full fine-tuning are there: a LoRA is the best rung and yet below the target, it
    had many examples, and more of them would hardly help; None otherwise, or where that was not measured.

    Args:
        mean: The score of the rung that is advised.
    """
    if advice.word != "fine_tune" or mean is None or curve is None or target is None:
        return None
    examples = curve.points[-1].examples
    if curve.more != "no" or mean.high >= target or examples < FULL_FINE_TUNING_EXAMPLES:
        return None
    name = title(advice.rung or "lora", inside=True)
    return (
        f"The signs of full fine-tuning are there: {name} stays below the target with {examples} examples, and more of "
        "this kind would hardly help. It is not offered here; try a higher rank (`hatrack train … --set lora_rank=64`) "
        "or a larger base first."
    )


def _difference(rows: Mapping[TrainingKey, Row], of: TrainingKey, against: TrainingKey) -> ArmDifference | None:
    """How much higher one part scores than another; None unless both were measured."""
    return difference(rows[of], rows[against], whole_interval()) if of in rows and against in rows else None


def _sentence(
    keys: Sequence[TrainingKey],
    outcomes: Mapping[TrainingKey, JobOutcome],
    more: ArmDifference | None,
    cleaner: ArmDifference | None,
    against_all: ArmDifference | None,
    smallest: float,
) -> str:
    compared: list[str] = []
    if more is not None:
        fewer, most = keys[-2:]
        compared.append(f"{outcomes[most].examples} examples against {outcomes[fewer].examples} of them: {_span(more)}")
    if CLEANEST in outcomes and (cleaner is not None or against_all is not None):
        cleanest = outcomes[CLEANEST].examples
        if cleaner is not None:
            compared.append(f"the cleanest {cleanest} against {outcomes['half'].examples} at random: {_span(cleaner)}")
        if against_all is not None:
            compared.append(f"the cleanest {cleanest} against all {outcomes['lora'].examples}: {_span(against_all)}")
    return f"{_verdict(more, cleaner, smallest)}. {_capital('; '.join(compared))}."


def _verdict(more: ArmDifference | None, cleaner: ArmDifference | None, smallest: float) -> str:
    if more is not None and cleaner is not None:
        return BOTH[_change(more, smallest), _change(cleaner, smallest)]
    if more is not None:
        return {
            "help": "More examples would probably help",
            "no": "More examples of this kind would hardly help",
            "open": "Whether more examples would help is open",
        }[_change(more, smallest)]
    return "Whether more examples or cleaner ones would help was not measured"


def _change(gain: ArmDifference, smallest: float) -> Change:
    return "help" if gain.low > 0 else "no" if gain.high < smallest else "open"


def _span(gain: ArmDifference) -> str:
    return f"{100 * gain.estimate:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
