"""A job as an experiment tracker shows it, and which trackers a request names."""

from __future__ import annotations

from typing import Any, Final

from adapters.protocol.requests import Integration
from trainer.config import Settings
from trainer.errors import InvalidField, UnsupportedValue
from trainer.finetune.objects import recipe_hyperparameters
from trainer.finetune.spec import JobDetails, JobResult
from trainer.runs.state import Run
from trainer.tracking.available import unavailable
from trainer.tracking.tracker import TrackedJob

BETWEEN: Final = "~"
"""Between the project and the caller's own name of a place; no project's name has it, so nobody reaches another's."""
_PLACE: Final = {"wandb": "project", "mlflow": "experiment"}


def requested_trackers(integrations: list[Integration] | None, settings: Settings) -> tuple[str, ...]:
    """The types of a request's integrations.

    Raises:
        InvalidField: One is named twice, or its entity is none that the operator allows.
        UnsupportedValue: The operator has not set it up.
    """
    names: list[str] = []
    for place, integration in enumerate(integrations or ()):
        param = f"integrations.{place}.type"
        if integration.type in names:
            raise InvalidField(f"`{param}` is `{integration.type}`, as an earlier one is; send it once", param=param)
        reason = unavailable(integration.type, settings)
        if reason is not None:
            raise UnsupportedValue(f"`{param}`: {reason}", param=param, code="integration_unavailable")
        entity = integration.wandb.entity if integration.wandb is not None else None
        if entity is not None and entity not in settings.wandb_entities:
            allowed = ", ".join(map(repr, settings.wandb_entities)) or "none: leave it out"
            param = f"integrations.{place}.wandb.entity"
            raise InvalidField(
                f"`{param}` is {entity!r}; the operator allows {allowed} (HATRACK_TRAINER_WANDB_ENTITIES)", param=param
            )
        names.append(integration.type)
    return tuple(names)


def tracked_job(run: Run, tracker: str) -> TrackedJob:
    """The job as the named tracker shows it. Its verdict is in the results, and nothing of its data."""
    details = JobDetails.model_validate(run.details)
    result = None if run.result is None else JobResult.model_validate(run.result)
    options = next(entry[tracker] for entry in run.body["integrations"] if entry["type"] == tracker)
    return TrackedJob(
        id=run.id,
        place=f"{run.project}{BETWEEN}{options[_PLACE[tracker]]}",
        name=options.get("name") or run.id,
        created_at=run.created_at,
        options=options,
        tags={"project": run.project, "adapter": details.adapter},
        params={} if details.plan is None else _params(run, details),
        results={} if result is None else _results(result),
        status=result.status if result is not None else "running",
        finished_at=run.finished_at,
    )


def _params(run: Run, details: JobDetails) -> dict[str, str]:
    assert details.plan is not None  # noqa: S101  the caller has looked
    multiplier = (run.body.get("hyperparameters") or {}).get("learning_rate_multiplier", "auto")
    params: dict[str, Any] = {
        "model": run.body["model"],
        "training_file": run.body["training_file"],
        "seed": details.seed,
        "objective": details.plan.recipe.objective,
        **recipe_hyperparameters(details.plan, multiplier),
    }
    if details.plan.primary is not None:
        params["metric"] = details.plan.primary.name
    return {name: ",".join(value) if isinstance(value, tuple | list) else str(value) for name, value in params.items()}


def _results(result: JobResult) -> dict[str, str | float]:
    results: dict[str, Any] = {
        "version": result.fine_tuned_model,
        "digest": result.digest,
        "trained_tokens": result.trained_tokens,
        "final_loss": result.final_loss,
        "seconds": result.seconds,
        "cost": result.cost,
        "error": None if result.error is None else result.error.code,
    }
    if result.judged is not None:
        judged = result.judged
        results |= {"verdict": judged.verdict, "verdict_sentence": judged.sentence, "verdict_metric": judged.metric}
        results |= {"verdict_examples": judged.examples, "live": str(judged.live).lower()}
    return {name: value for name, value in results.items() if value is not None}
