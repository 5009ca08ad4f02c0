"""Which instructions are used, and the evaluations and the job that a ladder starts."""

from __future__ import annotations

from typing import Final

from adapters.protocol.runs import EvaluationContext
from trainer.evaluate.evaluations.schemas import ArmBody, EvaluationBody
from trainer.evaluate.evaluations.spec import EvaluationJob, OperatorRules
from trainer.evaluate.scored_arms import ArmScores
from trainer.finetune.spec import EvaluationOptions, JobSpec
from trainer.ladder.spec import LadderPlan, LadderSpec, Purpose, Row, Rung, Rungs
from trainer.tune.hyperparameters import HyperparameterRequest

CANDIDATE: Final = "candidate "


def chosen_instructions(plan: LadderPlan, scores: ArmScores | None) -> str | None:
    """The candidate with the highest mean; the first of several equal ones, or of all if none was measured; None if
    there is none."""
    if scores is None:
        return next(iter(plan.instructions), None)
    means = [sum(arm.scores) / len(arm.scores) for arm in scores.arms]
    best = max(range(len(means)), key=lambda index: means[index])
    return plan.instructions[int(scores.arms[best].label.removeprefix(CANDIDATE)) - 1]


def choosing_evaluation(spec: LadderSpec, plan: LadderPlan, run_id: str) -> EvaluationJob:
    """The evaluation of the base with each candidate's instructions, on the part that nothing else is measured on."""
    arms = tuple(
        ArmBody.model_validate(
            {"label": f"{CANDIDATE}{number}", "model": spec.base_name, "prompt": {"system": instructions}}
        )
        for number, instructions in enumerate(plan.instructions, start=1)
    )
    return _evaluation(spec, plan, run_id, arms, "choose")


def rungs_evaluation(
    spec: LadderSpec, plan: LadderPlan, run_id: str, rungs: tuple[Rung, ...], purpose: Purpose
) -> EvaluationJob:
    """The evaluation of rungs, each by its own name."""
    arms = tuple(ArmBody.model_validate({"label": rung.key, "model": rung.model}) for rung in rungs)
    return _evaluation(spec, plan, run_id, arms, purpose)


def _evaluation(
    spec: LadderSpec, plan: LadderPlan, run_id: str, arms: tuple[ArmBody, ...], purpose: Purpose
) -> EvaluationJob:
    file = plan.held_out
    if purpose == "choose":
        assert plan.choosing is not None  # noqa: S101 - without this part nothing is chosen
        file = plan.choosing
    body = EvaluationBody(
        arms=arms, held_out=file.id, metric=plan.metric, suites=(), max_tokens=plan.max_tokens, repeats=1
    )
    context = EvaluationContext(held_out=file, models={arm.label: arm.model for arm in arms})
    rules = {name: getattr(spec, name) for name in OperatorRules.model_fields}
    return EvaluationJob(
        id=run_id,
        project=spec.project,
        created_at=spec.created_at,
        gateway=spec.gateway,
        base_name=spec.base_name,
        context_tokens=spec.context_tokens,
        template_switches=spec.template_switches,
        thinks=spec.thinks,
        body=body,
        context=context,
        **rules,
    )


def lora_job(spec: LadderSpec, plan: LadderPlan, run_id: str) -> JobSpec:
    """The job that trains the LoRA on the training part, and judges it on the held-out part."""
    rules = {name: getattr(spec, name) for name in OperatorRules.model_fields}
    metric = plan.metric
    judging = EvaluationOptions(
        promote="never", metric=metric["name"], suites=() if spec.body.quick else ("general",), **rules
    )
    return JobSpec(
        id=run_id,
        project=spec.project,
        created_at=spec.created_at,
        gateway=spec.gateway,
        adapter=spec.body.adapter,
        base_dir=spec.base_dir,
        base_name=spec.base_name,
        max_rank=spec.max_rank,
        context=spec.context,
        dtype=spec.dtype,
        training_file=plan.training,
        validation_file=plan.held_out,
        wish=HyperparameterRequest(),
        seed=spec.seed,
        overflow="drop",
        metadata={"ladder": spec.id},
        device=spec.device,
        checkpoint_s=spec.checkpoint_s,
        price_per_hour=spec.prices.device_hour or 0.0,
        yield_above=spec.yield_above,
        yield_most_s=spec.yield_most_s,
        judging=judging,
    )


def rows_of(rungs: Rungs, scores: list[ArmScores]) -> list[Row]:
    """The rungs that have been measured, the cheapest first."""
    rows: list[Row] = []
    for rung in rungs.rungs:
        for each in scores:
            arm = next((arm for arm in each.arms if arm.label == rung.key), None)
            if arm is not None:
                rows.append((rung.key, each, arm))
                break
    return rows
