"""A job's events: the findings and the choices of its plan, and the metrics of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapters.wording import counted
from trainer.data.prepare import Prepared
from trainer.data.report import SHOWN_LINES, TOO_FEW_HELD_OUT
from trainer.finetune.spec import JobSpec, TrainingPlan
from trainer.finetune.system_prompt import lines_with_other_prompt
from trainer.tune.progress import TrainingProgress


def emit_plan_events(emit_event: Callable[..., None], job: JobSpec, prepared: Prepared, plan: TrainingPlan) -> None:
    """Emit an event for each finding and each automatic choice, before the training starts."""
    report = prepared.report
    # first of all: such a job should not start unnoticed
    for finding in sorted(report.findings, key=lambda finding: finding.code != TOO_FEW_HELD_OUT):
        level = "info" if finding.severity == "note" else "warn"
        emit_event(finding.message, level=level, code=finding.code, lines=list(finding.lines))
    emit_event(f"{report.file}: format {report.format}. {report.size}")
    if report.held_out.source == "split":
        examples_are = counted(report.held_out.examples, "example is", "examples are")
        emit_event(f"{examples_are} held out (seed {report.held_out.seed}) and not trained on")
    if report.validation is not None:
        more_are = counted(report.validation.examples, "more is", "more are")
        emit_event(f"{more_are} not trained on: the loss there chooses the best epoch, and no verdict")
    if plan.recipe.patience and report.validation is None:
        emit_event("early_stopping_patience has no effect: too few examples for a validation part", level="warn")
    lines = lines_with_other_prompt(job.system_prompt, prepared)
    if lines:
        examples_have = counted(len(lines), "example has", "examples have")
        keep_their = "keeps its" if len(lines) == 1 else "keep their"
        message = f"{examples_have} a system message other than `system_prompt`, and {keep_their} own"
        emit_event(message, level="warn", code="system_prompts_differ", lines=lines[:SHOWN_LINES])
    for name, why in plan.chosen.items():
        emit_event(f"{name} auto: {why}", hyperparameter=name)
    if plan.primary is not None:
        emit_event(f"the adapter will be judged by {plan.primary.name}: {plan.primary.why}", metric=plan.primary.name)


def metrics(now: TrainingProgress, method: str) -> dict[str, Any]:
    """The data of a `metrics` event (`trainer.runs.protocol.WorkerEvent`)."""
    accuracy = "reward_accuracy" if method == "dpo" else "mean_token_accuracy"
    data = {
        "step": now.step,
        "total_steps": now.steps,
        "epoch": round(now.epoch, 4),
        "train_loss": now.loss,
        f"train_{accuracy}": now.accuracy,
        "learning_rate": now.learning_rate,
        "tokens_per_s": round(now.tokens_per_s, 1),
        "seconds_left": round(now.seconds_left, 1),
        "memory_bytes": now.memory_bytes,
        "ends_epoch": now.ends_epoch,
    }
    if now.evaluation is not None:
        for name in ("valid", "full_valid"):  # OpenAI's names for a part of the examples, and for all of them
            data |= {f"{name}_loss": now.evaluation.loss, f"{name}_{accuracy}": now.evaluation.accuracy}
    return data
