"""``POST /v1/fine_tuning/jobs/estimate``: what a job will take and cost, before it runs."""

from __future__ import annotations

from typing import Any

from adapters.costs import Prices, total
from adapters.protocol.costs import EstimatedJob
from service.access.caller import Caller
from service.costs.runs import TrainerCosts
from service.errors import BadRequest
from service.files.service import Files
from service.training.job_request import JobRequest
from service.training.jobs import JobService
from service.training.service import Answer


class EstimateService:
    """Estimates jobs: authorises them as if they were created, and has the trainer measure."""

    def __init__(self, jobs: JobService, files: Files, trainer: TrainerCosts, prices: Prices) -> None:
        self._jobs = jobs
        self._files = files
        self._trainer = trainer
        self._prices = prices

    async def estimate(self, caller: Caller, request: JobRequest, headers: dict[str, str]) -> dict[str, Any] | Answer:
        """The estimate, as ``service.costs.schemas.JobEstimate``; or the trainer's refusal.

        Raises:
            Forbidden, NotFound, BadRequest: As for a job; or passages are retrieved for its training prompts.
            TrainerUnavailable, Timeout, BadGateway: The trainer does not answer.
        """
        prepared = await self._jobs.prepare(caller, request)
        if prepared.passages_by is not None:
            # only a job's worker, which has a key of its own, may ask for them
            raise BadRequest(
                f"`{prepared.passages_by}` brings a `grounding`: its passages are retrieved when the "
                "job runs, so their tokens cannot be counted before. Estimate it from a base and without "
                "`grounding`; each example then takes up to `max_passage_tokens` more",
                param=prepared.passages_by,
                code="estimate_unsupported",
            )
        paths = {}
        for param, named in prepared.files.items():
            _, paths[param] = await self._files.content(caller, named.file.id)
        estimate = await self._trainer.estimate(prepared.envelope, headers, paths)
        if isinstance(estimate, Answer):
            return estimate
        return shown(estimate, prepared.authorized.adapter, self._prices)


def shown(estimate: EstimatedJob, adapter: str, prices: Prices) -> dict[str, Any]:
    """An estimate as the API shows it."""
    seconds = {"starting": estimate.starting_s, "training": estimate.training_s, "judging": estimate.judging_s}
    money = None
    if prices.device_hour is not None:
        amounts = {name: None if value is None else prices.device(value) for name, value in seconds.items()}
        money = amounts | {"total": total(*amounts.values())}
    return {
        "object": "fine_tuning.job.estimate",
        "adapter": adapter,
        "device": estimate.device,
        "examples": estimate.examples,
        "held_out": estimate.held_out,
        "epochs": estimate.epochs,
        "tokens": estimate.trained_tokens,
        "hyperparameters": estimate.hyperparameters,
        "plan": estimate.plan,
        "speed": {
            "tokens_per_second": estimate.tokens_per_s,
            "source": estimate.speed_source,
            "jobs": estimate.jobs,
        },
        "seconds": seconds | {"total": total(*seconds.values())},
        "money": money,
        "currency": prices.currency,
    }
