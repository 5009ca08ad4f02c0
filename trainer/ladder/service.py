"""The service behind the ladder routes: create, list, cancel, read."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import sqlalchemy as sa

from adapters.protocol.reports import Waiting
from adapters.protocol.runs import LadderContext
from trainer.base_model import chat_template
from trainer.config import Installation, Settings
from trainer.database import Database
from trainer.errors import LadderNotFinished, NotFound
from trainer.evaluate.arms import template_switches, thinks
from trainer.evaluate.evaluations.spec import operator_rules
from trainer.evaluate.scored_arms import ArmScores
from trainer.http import CurrentCaller, list_object
from trainer.ladder import kind, spec
from trainer.ladder.kind import LadderKind
from trainer.ladder.objects import ladder_object
from trainer.ladder.schemas import LadderBody, read_request
from trainer.ladder.spec import LadderDetails, LadderSpec, Rungs, scores_file
from trainer.runs import journal
from trainer.runs.idempotency import retry_of
from trainer.runs.notifier import Notifier
from trainer.runs.records import NewRun
from trainer.runs.service import RunKey, RunService
from trainer.runs.state import Event, Run, Status
from trainer.runs.waiting import WaitingLines


class Ladders(RunService):
    """All ladders of this trainer.

    Args:
        positions: The base's maximum context length, in tokens.
    """

    def __init__(
        self,
        ladder: LadderKind,
        settings: Settings,
        installation: Installation,
        positions: int,
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
    ) -> None:
        super().__init__(ladder, settings, database, notifier, lines)
        self._installation = installation
        self._context_tokens = installation.context or positions
        self._template = chat_template(installation.base)

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        return ladder_object(run, waiting, await asyncio.to_thread(self._shown_rungs, run.id))

    def _shown_rungs(self, run_id: str) -> list[dict[str, Any]]:
        rungs = self.directories.read(run_id, spec.RUNGS, Rungs)
        if rungs is None:
            return []
        stored = (self.directories.read(run_id, scores_file(purpose), ArmScores) for purpose in ("prompts", "lora"))
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
        body = read_request(request)
        retry = retry_of(idempotency_key, request)
        existing = await self.find_previous_run(caller, retry)
        if existing is not None:
            return (await self.show_to(caller, existing))[0], True
        ladder = self._spec(caller, body.model_copy(update={"adapter": context.adapter}), context)
        new_run = NewRun(
            id=ladder.id,
            kind=kind.NAME,
            project=caller.project,
            key_id=caller.key_id,
            run_key_id=key.id,
            created_at=ladder.created_at,
            body=request | {"training_file": context.training_file.id},  # it may have named a dataset
            adapters=(context.adapter,),
            details=LadderDetails(adapter=context.adapter).model_dump(mode="json"),
            status=kind.CLIMBING.waits_as,
        )
        run, made = await self.create_run(caller, new_run, ladder, key, retry, f"created ladder {ladder.id}")
        return (await self.show_to(caller, run))[0], not made

    def _spec(self, caller: CurrentCaller, body: LadderBody, context: LadderContext) -> LadderSpec:
        settings, installation = self._settings, self._installation
        return LadderSpec(
            id=self.kind.new_id(),
            project=caller.project,
            created_at=int(time.time()),
            gateway=installation.gateway,
            base_dir=installation.base,
            base_name=installation.base_name,
            max_rank=installation.max_rank,
            context=installation.context,
            context_tokens=self._context_tokens,
            dtype=installation.dtype,
            device=settings.device,
            checkpoint_s=settings.checkpoint_s,
            yield_above=settings.yield_above,
            yield_most_s=settings.yield_most_s,
            seed=secrets.randbelow(2**31),
            template_switches=template_switches(self._template),
            thinks=thinks(self._template),
            prices=settings.prices,
            body=body,
            context_of_request=context,
            **operator_rules(settings).model_dump(),
        )

    # reading

    async def events(self, caller: CurrentCaller, ladder_id: str, *, limit: int) -> dict[str, Any]:
        """The ladder's last events, newest first. Raises NotFound."""

        def read(db: sa.Connection) -> list[Event]:
            run = self.find(db, caller, ladder_id)
            return journal.newest(db, run.id, before=None, limit=limit + 1)

        events = await self._database.run(read)
        shown = [
            {
                "object": "ladder.event",
                "id": f"{event.run}-{event.number}",
                "created_at": int(event.at),
                "level": event.level,
                "message": event.message,
            }
            for event in events[:limit]
        ]
        return list_object(shown, len(events) > limit)

    async def report(self, caller: CurrentCaller, ladder_id: str) -> bytes:
        """The report as JSON. Raises NotFound, LadderNotFinished."""
        return await self._finished(caller, ladder_id, spec.REPORT)

    async def report_page(self, caller: CurrentCaller, ladder_id: str) -> bytes:
        """The report as a page. Raises NotFound, LadderNotFinished."""
        return await self._finished(caller, ladder_id, spec.PAGE)

    async def _finished(self, caller: CurrentCaller, ladder_id: str, name: str) -> bytes:
        run = await self.row(caller, ladder_id)
        if not run.over:
            raise LadderNotFinished(
                f"the ladder `{run.id}` is {run.shown_status} and has no report yet", retry_after_s=5
            )
        content = await asyncio.to_thread(self.directories.read_bytes, run.id, name)
        if run.status is not Status.SUCCEEDED or content is None:
            raise NotFound(f"the ladder `{run.id}` is {run.status} and has no report", param="id")
        return content
