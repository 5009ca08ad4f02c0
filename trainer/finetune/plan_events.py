"""The events of a job whose data have been checked: the findings, and the choices of the plan."""

from __future__ import annotations

from collections.abc import Callable

from trainer.data.prepare import Prepared
from trainer.data.report import SHOWN_LINES, TOO_FEW_HELD_OUT
from trainer.finetune.spec import JobSpec, TrainingPlan
from trainer.finetune.system_prompt import lines_with_other_prompt


def emit_plan_events(emit_event: Callable[..., None], job: JobSpec, prepared: Prepared, plan: TrainingPlan) -> None:
    """Emit an event for each finding and each automatic choice, before the training starts."""
    report = prepared.report
    # first of all: such a job should not start unnoticed
    for finding in sorted(report.findings, key=lambda finding: finding.code != TOO_FEW_HELD_OUT):
        level = "info" if finding.severity == "note" else "warn"
        emit_event(finding.message, level=level, code=finding.code, lines=list(finding.lines))
    emit_event(f"{report.file}: format {report.format}. {report.size}")
    if report.held_out.source == "split":
        emit_event(f"{report.held_out.examples} examples are held out (seed {report.held_out.seed}) and not trained on")
    lines = lines_with_other_prompt(job.system_prompt, prepared)
    if lines:
        message = f"{len(lines)} examples have a system message other than `system_prompt`; they keep their own"
        emit_event(message, level="warn", code="system_prompts_differ", lines=lines[:SHOWN_LINES])
    for name, why in plan.chosen.items():
        emit_event(f"{name} auto: {why}", hyperparameter=name)
    if plan.primary is not None:
        emit_event(f"the adapter will be judged by {plan.primary.name}: {plan.primary.why}", metric=plan.primary.name)
