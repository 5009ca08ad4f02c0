"""Which rung can no longer matter. Loads the statistics: imported only when a ladder goes on."""

from __future__ import annotations

from trainer.ladder.advice import advise, independent, measured, title
from trainer.ladder.spec import CHANGING_SHARE, MIN_EXAMPLES, LadderPlan, LadderSpec, Row, SkippedRung


def lora_is_needless(spec: LadderSpec, plan: LadderPlan, rows: list[Row]) -> SkippedRung | None:
    """Why a LoRA can no longer matter, or None: training is the dearest rung."""

    def skipped(reason: str) -> SkippedRung:
        return SkippedRung(key="lora", title="LoRA", reason=reason)

    if not spec.body.lora:
        return skipped("the request says `lora: false`")
    advice = advise(rows, plan.facts, target=spec.body.target, smallest=spec.smallest_difference)
    if plan.facts.changing_facts >= CHANGING_SHARE * plan.facts.examples:
        return skipped("the answers hold facts that change: a LoRA would learn them by heart")
    if advice.word == "cannot_tell" and independent(rows) < MIN_EXAMPLES:
        return skipped("there are too few independent held-out examples to tell whether it helps")
    if advice.word == "cannot_tell" and plan.facts.noisy_labels:
        return skipped("the labels look unrelated to the questions: there is nothing to learn")
    if spec.body.target is not None:
        reached = next((row for row in rows if _reaches(row, spec.body.target)), None)
        if reached is not None:
            return skipped(f"{title(reached[0], inside=True)} reaches the target already")
    if any(min(arm.scores) == 1.0 for _, _, arm in rows):
        return skipped("a prompt answers every held-out example correctly: nothing can score more")
    return None


def _reaches(row: Row, target: float) -> bool:
    return measured([row])[0].mean.low >= target
