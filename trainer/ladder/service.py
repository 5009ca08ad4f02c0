"""The service behind the ladder routes: create, list, cancel, read."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import Any

from adapters.protocol.reports import Waiting
from adapters.protocol.runs import LadderContext
from trainer.config import Installation, Settings
from trainer.database import Database
from trainer.evaluate.evaluations.spec import ServedModel, operator_rules
from trainer.evaluate.scored_arms import ArmScores
from trainer.http import CurrentCaller
from trainer.ladder import spec
from trainer.ladder.kind import LadderKind
from trainer.ladder.spec import COMPARISONS, LadderBody, LadderDetails, LadderSpec, Rungs, scores_file
from trainer.runs.kind import RunDraft
from trainer.runs.notifier import Notifier
from trainer.runs.service import RunKey, RunService
from trainer.runs.spec import training_run_spec
from trainer.runs.state import Event, Run
from trainer.runs.waiting import WaitingLines
from trainer.validation import validated


class Ladders(RunService):
    """All ladders of this trainer."""

    def __init__(
        self,
        ladder: LadderKind,
        settings: Settings,
        installation: Installation,
        model: ServedModel,
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
    ) -> None:
        super().__init__(ladder, settings, database, notifier, lines)
        self._installation = installation
        self._model = model

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        return ladder_object(run, waiting, await asyncio.to_thread(self._shown_rungs, run.id))

    def _shown_rungs(self, run_id: str) -> list[dict[str, Any]]:
        rungs = self.directories.read(run_id, spec.RUNGS, Rungs)
        if rungs is None:
            return []
        stored = (self.directories.read(run_id, scores_file(purpose), ArmScores) for purpose in COMPARISONS)
        means = {
            arm.label: sum(arm.scores) / len(arm.scores)
            for scores in stored
            if scores is not None
            for arm in scores.arms
        }
        return [
            {"key": rung.key, "title": rung.title, "model": rung.model, "mean": means.get(rung.key)}
            for rung in rungs.rungs
        ]

    async def create(
        self,
        caller: CurrentCaller,
        request: dict[str, Any],
        context: LadderContext,
        key: RunKey,
        idempotency_key: str | None,
    ) -> tuple[dict[str, Any], bool]:
        """Create a ladder. Returns the object, and whether it already existed for this Idempotency-Key.

        Raises:
            InvalidField, UnknownParameter: A field is invalid.
            IdempotencyKeyReused: The Idempotency-Key was used with another body.
            TooManyRequests: The project has too many unfinished ladders.
            DiskFull: The disk is full.
        """
        body = validated(LadderBody, request)
        draft = partial(self._draft, caller, request, body, context)
        return await self.create_once(caller, request, key, idempotency_key, draft)

    async def _draft(
        self, caller: CurrentCaller, request: dict[str, Any], body: LadderBody, context: LadderContext
    ) -> RunDraft:
        settings = self._settings
        ladder = LadderSpec(
            **dict(training_run_spec(self.kind.new_id(), caller.project, self._installation, settings)),
            **dict(self._model),
            **dict(operator_rules(settings)),
            seed=secrets.randbelow(2**31),
            prices=settings.prices,
            body=body.model_copy(update={"adapter": context.adapter}),
            context_of_request=context,
        )
        return RunDraft(
            kind=self.kind.name,
            id=ladder.id,
            spec=ladder,
            body=request | {"training_file": context.training_file.id},  # it may have named a dataset
            adapters=(context.adapter,),
            details=LadderDetails(adapter=context.adapter).model_dump(mode="json"),
        )

    # reading

    async def events(self, caller: CurrentCaller, ladder_id: str, *, limit: int) -> dict[str, Any]:
        """The ladder's last events, newest first. Raises NotFound."""

        return await self.events_page(caller, ladder_id, limit=limit, show=_event_object)


def ladder_object(run: Run, waiting: Waiting | None, rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """The object of one ladder. ``rungs``: what is there by now, the cheapest first."""
    result = run.result or {}
    details = LadderDetails.model_validate(run.details)
    return {
        "object": "ladder",
        "id": run.id,
        "status": run.shown_status,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "adapter": details.adapter,
        "training_file": run.body["training_file"],
        "quick": bool(run.body.get("quick", False)),
        "target": run.body.get("target"),
        "children": [{"id": child, "purpose": purpose} for child, purpose in details.purposes.items()],
        "waiting": waiting.model_dump(mode="json") if waiting is not None else None,
        "rungs": rungs,
        "advice": result.get("advice"),
        "rung": result.get("rung"),
        "model": result.get("model"),
        "sentence": result.get("sentence"),
        "result_files": list(result.get("files") or ()),
        "seconds": result.get("seconds"),
        "error": result.get("error"),
        "metadata": run.body.get("metadata"),
    }


def _event_object(event: Event) -> dict[str, Any]:
    return {
        "object": "ladder.event",
        "id": f"{event.run}-{event.number}",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
    }
