"""Jobs, events and checkpoints as OpenAI's objects, with what is ours under `hatrack`."""

from __future__ import annotations

from typing import Any, Final

from trainer.errors import Invalid
from trainer.finetune.spec import JobDetails, Plan, Result
from trainer.runs.protocol import Control
from trainer.runs.state import CheckpointRow, Event, Run, Status

VERDICT: Final = "hatrack_verdict"
EVENT_ID, CHECKPOINT_ID = "ftevent", "ftckpt"
"""How the ids of events and checkpoints begin; the job's own part and a number follow."""


def job_object(run: Run) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job`. `hyperparameters` are what was asked for until the plan is known, then its values."""
    asked = _asked(run)
    details = JobDetails.model_validate(run.details)
    result = None if run.result is None else Result.model_validate(run.result)
    hyperparameters = asked if details.plan is None else resolved(details.plan, asked["learning_rate_multiplier"])
    return {
        "object": "fine_tuning.job",
        "id": run.id,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "estimated_finish": run.estimated_finish if run.status is Status.RUNNING else None,
        "status": run.status,
        "error": result.error.model_dump() if result is not None and result.error is not None else None,
        "model": run.body["model"],
        "fine_tuned_model": result.fine_tuned_model if result is not None else None,
        "organization_id": run.project,
        "training_file": run.body["training_file"],
        "validation_file": run.body.get("validation_file"),
        "result_files": list(details.result_files),
        "trained_tokens": result.trained_tokens if result is not None else None,
        "seed": details.seed,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "integrations": [],
        "metadata": _metadata(run, result),
        "hatrack": _ours(run, details, result),
    }


def _metadata(run: Run, result: Result | None) -> dict[str, str] | None:
    """The client's, and the verdict's bare word once there is one."""
    given: dict[str, str] | None = run.body.get("metadata")
    judged = result.judged if result is not None else None
    return given if judged is None else {**(given or {}), VERDICT: judged.verdict}


def _ours(run: Run, details: JobDetails, result: Result | None) -> dict[str, Any]:
    plan = details.plan
    return {
        "adapter": details.adapter,
        "device": result.device if result is not None and result.device else details.device,
        "wanted": run.wanted if not run.over and run.wanted is not Control.RUN else None,
        "plan": plan.model_dump(mode="json", exclude={"primary": {"answers"}}) if plan is not None else None,
        "metric": plan.primary.name if plan is not None and plan.primary is not None else None,
        "verdict": result.judged.model_dump() if result is not None and result.judged is not None else None,
        "report": details.report,
        "pauses": {"count": run.pauses, "seconds": run.paused_s},
        "digest": result.digest if result is not None else None,
        "seconds": result.seconds if result is not None else None,
        "cost": result.cost if result is not None else None,
        "final_loss": result.final_loss if result is not None else None,
    }


def _asked(run: Run) -> dict[str, Any]:
    """The hyperparameters of the body, `auto` where nothing was said."""
    inner = ((run.body.get("method") or {}).get("supervised") or {}).get("hyperparameters") or {}
    openais = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    return openais | (run.body.get("hyperparameters") or {}) | inner


def resolved(plan: Plan, multiplier: Any) -> dict[str, Any]:
    """A recipe under the names that hyperparameters are asked for by.

    Args:
        multiplier: The `learning_rate_multiplier` as it was asked for; a recipe has the rate that it came to.
    """
    recipe = plan.recipe
    return {
        "n_epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate_multiplier": multiplier if multiplier == "auto" else float(multiplier),
        "learning_rate": recipe.learning_rate,
        "lora_rank": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": recipe.target_modules,
        "rslora": recipe.rslora,
        "quantization": recipe.quantization,
        "max_length": recipe.max_length,
        "packing": recipe.packing,
        "warmup_ratio": recipe.warmup_ratio,
    }


def event_object(event: Event) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.event`."""
    return {
        "object": "fine_tuning.job.event",
        "id": f"{EVENT_ID}-{_own(event.run)}-{event.number}",
        "created_at": int(event.at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_object(run: Run, row: CheckpointRow, last: bool) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.checkpoint`.

    The last one of a job that has succeeded is the version itself; the others are there to resume from, and their
    model's name says that it is none that answers.
    """
    result = None if run.result is None else Result.model_validate(run.result)
    model = result.fine_tuned_model if last and result is not None else None
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"{CHECKPOINT_ID}-{_own(row.run)}-{row.step}",
        "created_at": int(row.at),
        "fine_tuned_model_checkpoint": model or f"{run.id}:step-{row.step}",
        "fine_tuning_job_id": run.id,
        "step_number": row.step,
        "metrics": row.metrics,
    }


def event_number(run: Run, event_id: str | None) -> int:
    """The number of an event of the job, from its id; 0, before the first one, where there is none. Raises Invalid."""
    return 0 if event_id is None else number_in(run, event_id, EVENT_ID)


def number_in(run: Run, item_id: str, prefix: str) -> int:
    """The number of an event, or the step of a checkpoint, of the job, from its id. Raises Invalid."""
    number = item_id.removeprefix(f"{prefix}-{_own(run.id)}-")
    if number == item_id or not number.isdecimal() or len(number) > 15:
        raise Invalid(f"`after` is {item_id[:80]!r}, which is none of this job's", param="after")
    return int(number)


def _own(job_id: str) -> str:
    return job_id.removeprefix("ftjob-")
