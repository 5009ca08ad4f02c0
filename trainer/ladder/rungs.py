"""Which instructions are used, and the evaluations and the job that a ladder starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from adapters.protocol.runs import EvaluationContext, FileRef
from trainer.evaluate.evaluations.schemas import ArmBody, EvaluationBody
from trainer.evaluate.evaluations.spec import EvaluationJob, OperatorRules, ServedModel
from trainer.evaluate.scored_arms import ArmScores
from trainer.finetune.spec import EvaluationOptions, JobSpec
from trainer.ladder.spec import (
    RETRIEVING,
    SUBSETS,
    EvaluationPurpose,
    LadderPlan,
    LadderSpec,
    Row,
    Rung,
    Rungs,
    TrainingKey,
)
from trainer.runs.spec import RunSpec, TrainingRunSpec
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
    spec: LadderSpec, plan: LadderPlan, run_id: str, rungs: tuple[Rung, ...], purpose: EvaluationPurpose
) -> EvaluationJob:
    """The evaluation of rungs, each by its own name."""
    arms = tuple(ArmBody.model_validate({"label": rung.key, "model": rung.model}) for rung in rungs)
    groundings = {rung.model: rung.settings["grounding"] for rung in rungs if rung.settings.get("grounding")}
    return _evaluation(spec, plan, run_id, arms, purpose, groundings)


def lora_evaluation(
    spec: LadderSpec, plan: LadderPlan, run_id: str, rungs: Rungs, key: TrainingKey, model: str
) -> EvaluationJob:
    """The evaluation of the version (``model``) of one training."""
    grounding = retrieval_of(key, rungs)
    arms = (ArmBody.model_validate({"label": key, "model": model}),)
    return _evaluation(spec, plan, run_id, arms, key, {} if grounding is None else {model: grounding})


def retrieval_of(key: TrainingKey, rungs: Rungs) -> dict[str, Any] | None:
    """What a LoRA retrieves: as the rung below it does; None if nothing."""
    if key not in RETRIEVING:
        return None
    grounding: dict[str, Any] = next(each.settings for each in rungs.rungs if each.key == RETRIEVING[key])["grounding"]
    return grounding


def _evaluation(
    spec: LadderSpec,
    plan: LadderPlan,
    run_id: str,
    arms: tuple[ArmBody, ...],
    purpose: EvaluationPurpose,
    groundings: Mapping[str, dict[str, Any]] | None = None,
) -> EvaluationJob:
    file = plan.held_out
    if purpose == "choose":
        assert plan.choosing is not None  # noqa: S101 - without this part nothing is chosen
        file = plan.choosing
    body = EvaluationBody(
        arms=arms, held_out=file.id, metric=plan.metric, suites=(), max_tokens=plan.max_tokens, repeats=1
    )
    models = {arm.label: arm.model for arm in arms}
    context = EvaluationContext(held_out=file, models=models, groundings={**(groundings or {})})
    inherited = _fields(spec, RunSpec, ServedModel, OperatorRules) | {"id": run_id}
    return EvaluationJob(**inherited, body=body, context=context)


def lora_job(
    spec: LadderSpec,
    plan: LadderPlan,
    run_id: str,
    key: TrainingKey,
    file: FileRef,
    grounding: dict[str, Any] | None,
) -> JobSpec:
    """The job that trains a LoRA on ``file``. The one without retrieval, on all examples, is judged on the held-out
    part, too; the others, and a quick ladder's, are only compared: judging takes as long as training them."""
    judging = EvaluationOptions(
        promote="never",
        requested=key == "lora" and not spec.body.quick,
        metric=plan.metric["name"],
        suites=() if spec.body.quick else ("general",),
        **_fields(spec, OperatorRules),
    )
    inherited = _fields(spec, TrainingRunSpec) | {"id": run_id}
    return JobSpec(
        **inherited,
        adapter=spec.body.adapter,
        training_file=file,
        validation_file=plan.held_out,
        wish=HyperparameterRequest(),
        seed=spec.seed,
        overflow="drop",
        grounding=grounding,
        stores=spec.context_of_request.stores,
        metadata={"ladder": spec.id, "training": key},
        keep_version_s=spec.keep_subsets_s if key in SUBSETS else None,
        price_per_hour=spec.prices.device_hour or 0.0,
        judging=judging,
    )


def _fields(spec: LadderSpec, *schemas: type[BaseModel]) -> dict[str, Any]:
    """The fields that a child run's spec has from its ladder's."""
    return {name: getattr(spec, name) for schema in schemas for name in schema.model_fields}


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
