"""The events of a job whose data were looked at: what was found, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable

from trainer.data.prepare import Prepared
from trainer.data.report import SHOWN_LINES, word_on_held_out
from trainer.finetune.spec import JobSpec, Plan
from trainer.finetune.system_prompt import others


def tell_plan(emit_event: Callable[..., None], job: JobSpec, prepared: Prepared, plan: Plan) -> None:
    """Say what there is to know before the training begins."""
    report = prepared.report
    emit_event(f"{report.file}: format {report.format}. {report.size}")
    for finding in report.findings:
        emit_event(finding.message, level="warn", code=finding.code, lines=list(finding.lines))
    if report.held_out.source == "split":
        emit_event(
            f"{report.held_out.examples} examples are held out (seed {report.held_out.seed}) and never trained on"
        )
    few = word_on_held_out(report.held_out.examples, job.judging.min_examples)
    if few is not None:
        emit_event(few, level="warn", code="too_few_held_out")
    lines = others(job.system_prompt, prepared)
    if lines:
        message = f"{len(lines)} examples have another system message than `system_prompt`, and keep it in training"
        emit_event(message, level="warn", code="system_prompts_differ", lines=lines[:SHOWN_LINES])
    for name, why in plan.chosen.items():
        emit_event(f"{name} auto: {why}", hyperparameter=name)
    if plan.primary is not None:
        emit_event(f"it will be judged by {plan.primary.name}: {plan.primary.why}", metric=plan.primary.name)
