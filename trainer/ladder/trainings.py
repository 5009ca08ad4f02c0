"""The LoRAs that a ladder trains, one after the other, and which of them can still matter.

After the prompts: a LoRA; the same with what the best rung with retrieval retrieves, trained on prompts that the
gateway's hook has rendered; one that learns from a teacher's answers; and, for the learning curve, LoRAs on a half and
on a quarter of the examples. Each is a job and an evaluation of its version. Loads the statistics: imported only when a
ladder goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.ladder.advice import advise, below, difference, independent, measured, whole_interval
from trainer.ladder.rungs import retrieval_of
from trainer.ladder.spec import (
    CHANGING_SHARE,
    MIN_EXAMPLES,
    RETRIEVING,
    SUBSETS,
    LadderPlan,
    LadderSpec,
    Row,
    Rungs,
    SkippedRung,
    TrainingKey,
)
from trainer.ladder.wording import title

MIN_CLEANER: Final = 0.05
"""Share of the random half for which the cleanest half must have other examples: otherwise the two hardly differ."""
ALL_RIGHT: Final = "answers every held-out example correctly: nothing can score more"


@dataclass(frozen=True, slots=True)
class NextTraining:
    """The next LoRA to train, None if there is none; its grounding; and what is left out before it."""

    key: TrainingKey | None
    grounding: dict[str, Any] | None
    skipped: tuple[SkippedRung, ...]


def next_training(
    spec: LadderSpec, plan: LadderPlan, rungs: Rungs, rows: Sequence[Row], done: Collection[str]
) -> NextTraining:
    """What to train next.

    Args:
        rows: The rungs that are measured, the simplest first.
        done: The keys of the trainings that have ended, one way or the other, and of those that were left out.
    """
    skipped: list[SkippedRung] = []
    for key in _planned(plan, rungs, rows):
        if key in done:
            continue
        reason = _needless(key, spec, plan, rungs, rows)
        if reason is None:
            return NextTraining(key, retrieval_of(key, rungs), tuple(skipped))
        skipped.append(SkippedRung(key=key, title=title(key), reason=reason))
    return NextTraining(None, None, tuple(skipped))


def _planned(plan: LadderPlan, rungs: Rungs, rows: Sequence[Row]) -> list[TrainingKey]:
    there = {rung.key for rung in rungs.rungs}
    retrieval: list[TrainingKey] = [key for key, below in RETRIEVING.items() if below in there]
    means = {key: sum(arm.scores) / len(arm.scores) for key, _, arm in rows}
    retrieval.sort(key=lambda key: means.get(RETRIEVING[key], 0.0), reverse=True)
    subsets: list[TrainingKey] = [key for key in SUBSETS if key in plan.subsets]
    distilled: list[TrainingKey] = ["distilled"] if plan.prompts else []
    return ["lora", *retrieval[:1], *distilled, *subsets]


def _needless(key: TrainingKey, spec: LadderSpec, plan: LadderPlan, rungs: Rungs, rows: Sequence[Row]) -> str | None:
    """Why a LoRA can no longer matter, or None: training is the dearest step. What may not go live excludes nothing."""
    fit = [row for row in rows if row[0] not in rungs.held_back]
    if key == "lora" or key == "distilled":
        needless = _lora_is_needless(spec, plan, fit)
        return _teacher_is_beaten(spec, fit) if needless is None and key == "distilled" else needless
    lora = next((row for row in rows if row[0] == "lora"), None)
    if lora is None:
        return "there is no LoRA to compare it with"
    if min(lora[2].scores) == 1.0 and lora in fit:
        return f"{title('lora', inside=True)} {ALL_RIGHT}"
    if key == "cleanest_half" and plan.cleaner < MIN_CLEANER * plan.counts["half"]:
        return (
            f"the data report finds too few faults: of {plan.counts['half']} examples, the cleanest half has only "
            f"{plan.cleaner} that the random half has not"
        )
    if key not in RETRIEVING:
        return None
    if spec.body.target is not None and lora in fit and _reaches(lora, spec.body.target):
        return f"{title('lora', inside=True)} reaches the target already"
    retrieving = [each for each, _, _ in rows].index(RETRIEVING[key])
    gain = difference(rows[retrieving], below(rows, retrieving), whole_interval())
    if gain.estimate <= 0:
        return "the base gains nothing by the same retrieval"
    if spec.body.quick and gain.low <= 0:
        return "what the base gains by the same retrieval is within the noise, and the ladder is to be quick"
    return None


def _lora_is_needless(spec: LadderSpec, plan: LadderPlan, rows: Sequence[Row]) -> str | None:
    """Why no LoRA need be compared with what is measured: a plain one with the prompts, the distilled one with all."""
    if not spec.body.lora:
        return "the request says `lora: false`"
    advice = advise(rows, plan.facts, target=spec.body.target, smallest=spec.smallest_difference)
    if plan.facts.changing_facts >= CHANGING_SHARE * plan.facts.examples:
        return "the answers hold facts that change: a LoRA would learn them by heart"
    if advice.word == "cannot_tell" and independent(rows) < MIN_EXAMPLES:
        return "there are too few independent held-out examples to tell whether it helps"
    if spec.body.target is not None:
        reached = next((row for row in rows if _reaches(row, spec.body.target)), None)
        if reached is not None:
            return f"{title(reached[0], inside=True)} reaches the target already"
    perfect = next((key for key, _, arm in rows if min(arm.scores) == 1.0), None)
    return None if perfect is None else f"{title(perfect, inside=True)} {ALL_RIGHT}"


def _teacher_is_beaten(spec: LadderSpec, rows: Sequence[Row]) -> str | None:
    """Why it is of no use to learn from a teacher that is itself a rung: a LoRA, as cheap to ask, is better already."""
    teacher = spec.context_of_request.teacher
    if teacher is None or teacher.outside:
        return None
    asked = [row for row in rows if row[2].model == teacher.name]
    if teacher.name == spec.base_name:  # as a teacher it is told the instructions
        asked = [row for row in rows if row[0] == "instructions"]
    loras = [row for row in rows if row[0] in ("lora", *RETRIEVING)]
    better = next((row for row in loras for own in asked if difference(row, own, whole_interval()).low > 0), None)
    if better is None:
        return None
    return f"{title(better[0], inside=True)} is better than the teacher, whose answers it would learn"


def _reaches(row: Row, target: float) -> bool:
    return measured([row])[0].mean.low >= target
