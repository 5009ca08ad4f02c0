"""Jobs, events and checkpoints as OpenAI's objects, with Hatrack's own fields under `hatrack`."""

from __future__ import annotations

from typing import Any, Final

from adapters.names import checkpoint_alias
from adapters.protocol.reports import Waiting
from trainer.errors import InvalidField
from trainer.finetune.spec import JobDetails, JobResult, TrainingPlan
from trainer.runs.protocol import Control
from trainer.runs.state import CheckpointRow, Event, Run, Status

VERDICT: Final = "hatrack_verdict"
EVENT_ID, CHECKPOINT_ID = "ftevent", "ftckpt"
"""Prefixes of the ids of events and checkpoints; the job's id suffix and a number follow."""


def job_object(run: Run, waiting: Waiting | None) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job`. `hyperparameters` are the requested ones until there is a plan, then the plan's."""
    requested = _requested_hyperparameters(run)
    details = JobDetails.model_validate(run.details)
    method = _method(run)
    result = None if run.result is None else JobResult.model_validate(run.result)
    hyperparameters = (
        requested
        if details.plan is None
        else recipe_hyperparameters(details.plan, requested["learning_rate_multiplier"])
    )
    return {
        "object": "fine_tuning.job",
        "id": run.id,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "estimated_finish": run.estimated_finish if run.status is Status.RUNNING else None,
        "status": run.shown_status,
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
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "integrations": run.body.get("integrations") or [],
        "metadata": _metadata(run, result),
        "hatrack": _hatrack_fields(run, details, result, waiting),
    }


def _metadata(run: Run, result: JobResult | None) -> dict[str, str] | None:
    """The client's metadata, plus the verdict once there is one."""
    given: dict[str, str] | None = run.body.get("metadata")
    judged = result.judged if result is not None else None
    return given if judged is None else {**(given or {}), VERDICT: judged.verdict}


def _hatrack_fields(run: Run, details: JobDetails, result: JobResult | None, waiting: Waiting | None) -> dict[str, Any]:
    plan = details.plan
    return {
        "adapter": details.adapter,
        "device": result.device if result is not None and result.device else details.device,
        "wanted": run.wanted if not run.over and run.wanted is not Control.RUN else None,
        "waiting": waiting.model_dump(mode="json") if waiting is not None else None,
        "requested": _given_hyperparameters(run),
        "plan": plan_object(plan) if plan is not None else None,
        "metric": plan.primary.name if plan is not None and plan.primary is not None else None,
        "verdict": result.judged.model_dump() if result is not None and result.judged is not None else None,
        "report": details.report,
        "pauses": {"count": run.pauses, "seconds": run.paused_s},
        "digest": result.digest if result is not None else None,
        "seconds": result.seconds if result is not None else None,
        "training_seconds": result.training_seconds if result is not None else None,
        "judging_seconds": result.judging_seconds if result is not None else None,
        "cost": result.known_cost if result is not None else None,
        "currency": result.currency if result is not None else None,
        "final_loss": result.final_loss if result is not None else None,
    }


def _method(run: Run) -> str:
    return str((run.body.get("method") or {}).get("type") or "supervised")


def _requested_hyperparameters(run: Run) -> dict[str, Any]:
    """The body's hyperparameters, with OpenAI's own as `auto` if unset."""
    names = ("n_epochs", "batch_size", "learning_rate_multiplier", *(("beta",) if _method(run) == "dpo" else ()))
    return dict.fromkeys(names, "auto") | _given_hyperparameters(run)


def _given_hyperparameters(run: Run) -> dict[str, Any]:
    """The body's hyperparameters as they were sent."""
    inner = ((run.body.get("method") or {}).get(_method(run)) or {}).get("hyperparameters") or {}
    return {**(run.body.get("hyperparameters") or {}), **inner}


def plan_object(plan: TrainingPlan) -> dict[str, Any]:
    """A plan as a job and an estimate show it."""
    return plan.model_dump(mode="json", exclude={"primary": {"answers"}, "base_name": True})


def recipe_hyperparameters(plan: TrainingPlan, multiplier: Any) -> dict[str, Any]:
    """A plan's recipe under the API's names of hyperparameters.

    Args:
        multiplier: The requested `learning_rate_multiplier`; the recipe has the resulting rate only.
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
        "early_stopping_patience": recipe.patience,
        **({"beta": recipe.beta} if recipe.objective == "dpo" else {}),
    }


def event_object(event: Event) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.event`."""
    return {
        "object": "fine_tuning.job.event",
        "id": f"{EVENT_ID}-{_id_suffix(event.run)}-{event.number}",
        "created_at": int(event.at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_object(run: Run, row: CheckpointRow, result: JobResult | None, last: bool) -> dict[str, Any]:
    """OpenAI's `fine_tuning.job.checkpoint`.

    `fine_tuned_model_checkpoint` answers as a model where `hatrack.version` says which version it is. That is the job's
    result for the step whose weights it has, and a version of its own for the epochs before.

    Args:
        result: The job's result, as far as it has come; None before its version is registered.
        last: Whether it is the job's last checkpoint: of a job of an earlier release, that one is the result.
    """
    version = None if result is None else result.checkpoints.get(row.step)
    if result is not None and not result.checkpoints and last:
        version = result.fine_tuned_model
    is_result = version is not None and result is not None and version == result.fine_tuned_model
    alias = f"{JobDetails.model_validate(run.details).adapter}:{checkpoint_alias(run.id, row.step)}"
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"{CHECKPOINT_ID}-{_id_suffix(row.run)}-{row.step}",
        "created_at": int(row.at),
        "fine_tuned_model_checkpoint": version if is_result else alias,
        "fine_tuning_job_id": run.id,
        "step_number": row.step,
        "metrics": row.metrics,
        "hatrack": {"version": version},
    }


def event_number(run: Run, event_id: str | None) -> int:
    """The number in the id of one of the job's events; 0 (before the first event) for None. Raises InvalidField."""
    return 0 if event_id is None else number_in(run, event_id, EVENT_ID)


def number_in(run: Run, item_id: str, prefix: str) -> int:
    """The event number or checkpoint step in the id of one of the job's items. Raises InvalidField."""
    number = item_id.removeprefix(f"{prefix}-{_id_suffix(run.id)}-")
    if number == item_id or not number.isdecimal() or len(number) > 15:
        raise InvalidField(f"`after` is {item_id[:80]!r}, which does not belong to the job `{run.id}`", param="after")
    return int(number)


def _id_suffix(job_id: str) -> str:
    return job_id.removeprefix("ftjob-")
