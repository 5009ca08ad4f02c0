"""Which rung can no longer matter. Loads the statistics: imported only when a ladder goes on."""

from __future__ import annotations

from trainer.ladder.advice import advise, measured
from trainer.ladder.spec import LadderPlan, LadderSpec, Row, SkippedRung


def lora_is_needless(spec: LadderSpec, plan: LadderPlan, rows: list[Row]) -> SkippedRung | None:
    """Why a LoRA can no longer matter, or None: training is the dearest rung."""

    def skipped(reason: str) -> SkippedRung:
        return SkippedRung(key="lora", title="LoRA", reason=reason)

    if not spec.body.lora:
        return skipped("the request says `lora: false`")
    advice = advise(rows, plan.facts, target=spec.body.target, smallest=spec.smallest_difference)
    if advice.word == "retrieval" and plan.facts.changing_facts:
        return skipped("the answers hold facts that change: a LoRA would learn them by heart")
    if advice.word == "cannot_tell" and plan.facts.noisy_labels:
        return skipped("the labels look unrelated to the questions: there is nothing to learn")
    if spec.body.target is not None:
        reached = next((row for row in rows if _reaches(row, spec.body.target)), None)
        if reached is not None:
            return skipped(f"{reached[0]} reaches the target already")
    if all(score == 1.0 for _, _, arm in rows[-1:] for score in arm.scores):
        return skipped("a prompt answers every held-out example right: nothing can score more")
    return None


def _reaches(row: Row, target: float) -> bool:
    return measured([row])[0].mean.low >= target
