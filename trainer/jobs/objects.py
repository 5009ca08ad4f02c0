"""Jobs, events and checkpoints as OpenAI's objects, with what is ours under `hatrack`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from trainer.jobs.spec import Control, Plan
from trainer.jobs.state import CheckpointRow, Event, Job, Status

VERDICT: Final = "hatrack_verdict"


def job_object(job: Job) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job`. `hyperparameters` are what was asked for until the plan is known, then its values."""
    asked = _asked(job)
    hyperparameters = asked if job.plan is None else resolved(job.plan, asked["learning_rate_multiplier"])
    result = job.result
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": job.estimated_finish if job.status is Status.RUNNING else None,
        "status": job.status,
        "error": result.error.model_dump() if result is not None and result.error is not None else None,
        "model": job.body["model"],
        "fine_tuned_model": result.fine_tuned_model if result is not None else None,
        "organization_id": job.project,
        "training_file": job.body["training_file"],
        "validation_file": job.body.get("validation_file"),
        "result_files": list(job.result_files),
        "trained_tokens": result.trained_tokens if result is not None else None,
        "seed": job.seed,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "integrations": [],
        "metadata": _metadata(job),
        "hatrack": _ours(job),
    }


def _metadata(job: Job) -> dict[str, str] | None:
    """The client's, and the verdict's bare word once there is one."""
    given: dict[str, str] | None = job.body.get("metadata")
    judged = job.result.judged if job.result is not None else None
    return given if judged is None else {**(given or {}), VERDICT: judged.verdict}


def _ours(job: Job) -> dict[str, Any]:
    plan, result = job.plan, job.result
    return {
        "adapter": job.adapter,
        "device": result.device if result is not None and result.device else job.device,
        "wanted": job.wanted if not job.over and job.wanted is not Control.RUN else None,
        "plan": plan.model_dump(mode="json", exclude={"primary": {"answers"}}) if plan is not None else None,
        "metric": plan.primary.name if plan is not None and plan.primary is not None else None,
        "verdict": result.judged.model_dump() if result is not None and result.judged is not None else None,
        "report": job.report,
        "pauses": {"count": job.pauses, "seconds": job.paused_s},
        "digest": result.digest if result is not None else None,
        "seconds": result.seconds if result is not None else None,
        "cost": result.cost if result is not None else None,
        "final_loss": result.final_loss if result is not None else None,
    }


def _asked(job: Job) -> dict[str, Any]:
    """The hyperparameters of the body, `auto` where nothing was said."""
    inner = ((job.body.get("method") or {}).get("supervised") or {}).get("hyperparameters") or {}
    openais = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    return openais | (job.body.get("hyperparameters") or {}) | inner


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
        "id": event.id,
        "created_at": int(event.at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_object(job: Job, row: CheckpointRow, last: bool) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.checkpoint`.

    The last one of a job that has succeeded is the version itself; the others are there to resume from, and their
    model's name says that it is none that answers.
    """
    model = job.result.fine_tuned_model if last and job.result is not None else None
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": row.id,
        "created_at": int(row.at),
        "fine_tuned_model_checkpoint": model or f"{job.id}:step-{row.step}",
        "fine_tuning_job_id": job.id,
        "step_number": row.step,
        "metrics": row.metrics,
    }


def list_object(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
