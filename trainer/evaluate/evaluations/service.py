"""The service behind the evaluation routes: create, list, cancel, read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from adapters.protocol.reports import Waiting
from adapters.protocol.runs import EvaluationContext
from trainer.config import Settings
from trainer.database import Database
from trainer.evaluate.arms import base_label
from trainer.evaluate.evaluations.kind import EvaluationKind
from trainer.evaluate.evaluations.objects import evaluation_object
from trainer.evaluate.evaluations.schemas import EvaluationBody, read_request
from trainer.evaluate.evaluations.spec import PAGE, EvaluationDetails, EvaluationJob, ServedModel, operator_rules
from trainer.http import CurrentCaller
from trainer.installation import Installation
from trainer.reviews.outcome import with_section
from trainer.reviews.service import Reviews
from trainer.runs.kind import RunDraft
from trainer.runs.notifier import Notifier
from trainer.runs.service import RunKey, RunService
from trainer.runs.spec import run_spec
from trainer.runs.state import Run, Status
from trainer.runs.waiting import WaitingLines


class Evaluations(RunService):
    """All evaluations of this trainer."""

    def __init__(
        self,
        evaluation: EvaluationKind,
        settings: Settings,
        installation: Installation,
        models: Mapping[str, ServedModel],
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
        reviews: Reviews,
    ) -> None:
        super().__init__(evaluation, settings, database, notifier, lines)
        self._reviews = reviews
        self._evaluation = evaluation
        self._installation = installation
        self._models = models

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        running = run.status is Status.RUNNING
        progress = await asyncio.to_thread(self._evaluation.worker_progress, run.id) if running else None
        return evaluation_object(run, progress, waiting)

    async def output(self, caller: CurrentCaller, run_id: str, name: str) -> bytes:
        """See RunService. The report and its page also show what people preferred, once they have reviewed all pairs.

        The files that the worker wrote stay as they are.
        """
        content = await super().output(caller, run_id, name)
        people = await self._reviews.preference(caller, run_id)
        if people is None:
            return content
        if name == PAGE:
            return with_section(content.decode(), people).encode()
        return json.dumps(json.loads(content) | {"people": people.model_dump(mode="json")}).encode()

    async def create(
        self,
        caller: CurrentCaller,
        request: dict[str, Any],
        context: EvaluationContext,
        key: RunKey,
        idempotency_key: str | None,
    ) -> tuple[dict[str, Any], bool]:
        """Create an evaluation. Returns the object, and whether it already existed for this Idempotency-Key.

        Raises:
            InvalidField, UnknownParameter: A field is invalid.
            IdempotencyKeyReused: The Idempotency-Key was used with another body.
            TooManyRequests: The project has too many unfinished evaluations.
            DiskFull: The disk is full.
        """
        body = read_request(request)
        draft = partial(self._draft, caller, request, body, context)
        return await self.create_once(caller, request, key, idempotency_key, draft)

    async def _draft(
        self, caller: CurrentCaller, request: dict[str, Any], body: EvaluationBody, context: EvaluationContext
    ) -> RunDraft:
        await asyncio.to_thread(_check, body, context, self._settings)
        installation = self._installation.on(context.base)
        spec = EvaluationJob(
            **dict(run_spec(self.kind.new_id(), caller.project, installation)),
            **dict(self._models[installation.base_name]),
            **dict(operator_rules(self._settings)),
            body=body.model_copy(update={"held_out": context.held_out.id}),
            context=context,
        )
        details = EvaluationDetails(arms=tuple(_arms(body, context, spec.base_name)))
        return RunDraft(
            kind=self.kind.name,
            id=spec.id,
            spec=spec,
            body=request | {"held_out": context.held_out.id},  # it may have named a dataset
            adapters=_adapters(details),
            stores=context.stores,
            details=details.model_dump(mode="json"),
        )


def _check(body: EvaluationBody, context: EvaluationContext, settings: Settings) -> None:
    from trainer.evaluate.evaluations.options import (
        check_options,
    )  # loads the statistics: imported only when an evaluation is created

    check_options(body, context, settings)


def _adapters(details: EvaluationDetails) -> tuple[str, ...]:
    """The names of the compared adapters, without those at outside endpoints."""
    models = [str(arm["model"]) for arm in details.arms if arm.get("endpoint") is None]
    return tuple(sorted({model.partition("@")[0] for model in models if "@" in model}))


def _arms(body: EvaluationBody, context: EvaluationContext, base: str) -> list[dict[str, Any]]:
    """The arms as shown in an evaluation; with ``model``, those known before the data is read."""
    if body.arms is None:
        candidate = str(context.candidate)
        arms = [{"label": candidate, "model": candidate, "role": "candidate"}]
        arms.append({"label": base_label(context.grounding), "model": base, "role": "base"})
        return arms + ([{"label": "live", "model": context.live, "role": "live"}] if context.live else [])
    roles = dict.fromkeys(body.bases, "base") | ({body.candidate: "candidate"} if body.candidate else {})
    return [
        {
            "label": arm.label,
            "model": context.models.get(arm.label, arm.model),
            "role": roles.get(arm.label),
            "endpoint": arm.endpoint,
        }
        for arm in body.arms
    ]
