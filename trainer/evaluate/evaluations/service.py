"""The service behind the evaluation routes: create, list, cancel, read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from adapters.protocol.reports import Waiting
from adapters.protocol.runs import EvaluationContext
from trainer.base_model import chat_template
from trainer.config import Installation, Settings
from trainer.database import Database
from trainer.errors import EvaluationNotFinished, NotFound
from trainer.evaluate.arms import base_label, template_switches, thinks
from trainer.evaluate.evaluations import kind, spec
from trainer.evaluate.evaluations.kind import EvaluationKind
from trainer.evaluate.evaluations.objects import evaluation_object
from trainer.evaluate.evaluations.schemas import EvaluationBody, read_request
from trainer.evaluate.evaluations.spec import EvaluationDetails, EvaluationJob, operator_rules
from trainer.http import CurrentCaller
from trainer.runs.idempotency import retry_of
from trainer.runs.notifier import Notifier
from trainer.runs.records import NewRun
from trainer.runs.service import RunKey, RunService
from trainer.runs.state import Run, Status
from trainer.runs.waiting import WaitingLines


class Evaluations(RunService):
    """All evaluations of this trainer.

    Args:
        positions: The base's maximum context length, in tokens.
    """

    def __init__(
        self,
        evaluation: EvaluationKind,
        settings: Settings,
        installation: Installation,
        positions: int,
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
    ) -> None:
        super().__init__(evaluation, settings, database, notifier, lines)
        self._evaluation = evaluation
        self._installation = installation
        self._context_tokens = installation.context or positions
        self._template = chat_template(installation.base)

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        running = run.status is Status.RUNNING
        progress = await asyncio.to_thread(self._evaluation.worker_progress, run.id) if running else None
        return evaluation_object(run, progress, waiting)

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
        retry = retry_of(idempotency_key, request)
        existing = await self.find_previous_run(caller, retry)
        if existing is not None:
            return (await self.show_to(caller, existing))[0], True
        await asyncio.to_thread(_check, body, context, self._settings)
        job = self._job(caller, body.model_copy(update={"held_out": context.held_out.id}), context)
        details = EvaluationDetails(arms=tuple(_arms(body, context, self._installation.base_name)))
        new_run = NewRun(
            id=job.id,
            kind=kind.NAME,
            project=caller.project,
            key_id=caller.key_id,
            run_key_id=key.id,
            created_at=job.created_at,
            body=request | {"held_out": context.held_out.id},  # it may have named a dataset
            adapters=_adapters(details),
            details=details.model_dump(mode="json"),
            status=kind.EVALUATE.waits_as,
        )
        run, made = await self.create_run(caller, new_run, job, key, retry, None)
        return (await self.show_to(caller, run))[0], not made

    def _job(self, caller: CurrentCaller, body: EvaluationBody, context: EvaluationContext) -> EvaluationJob:
        return EvaluationJob(
            id=self.kind.new_id(),
            project=caller.project,
            created_at=int(time.time()),
            gateway=self._installation.gateway,
            base_name=self._installation.base_name,
            context_tokens=self._context_tokens,
            template_switches=template_switches(self._template),
            thinks=thinks(self._template),
            body=body,
            context=context,
            **operator_rules(self._settings).model_dump(),
        )

    # reading

    async def report(self, caller: CurrentCaller, evaluation_id: str) -> bytes:
        """The report as JSON. Raises NotFound, EvaluationNotFinished."""
        return await self._finished(caller, evaluation_id, spec.REPORT)

    async def report_page(self, caller: CurrentCaller, evaluation_id: str) -> bytes:
        """The report as a page. Raises NotFound, EvaluationNotFinished."""
        return await self._finished(caller, evaluation_id, spec.PAGE)

    async def _finished(self, caller: CurrentCaller, evaluation_id: str, name: str) -> bytes:
        run = await self.row(caller, evaluation_id)
        if not run.over:
            raise EvaluationNotFinished(
                f"the evaluation `{run.id}` is {run.shown_status} and has no report yet", retry_after_s=5
            )
        content = await asyncio.to_thread(self.directories.read_bytes, run.id, name)
        if run.status is not Status.SUCCEEDED or content is None:
            raise NotFound(f"the evaluation `{run.id}` is {run.status} and has no report", param="id")
        return content


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
