"""The service behind the ladder routes: create, list, cancel, read."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from typing import Any, Final

from adapters.costs import TokenPrices
from adapters.protocol.reports import Waiting
from adapters.protocol.runs import LadderContext
from trainer.config import Settings
from trainer.database import Database
from trainer.errors import NotFound
from trainer.evaluate.endpoints import OperatorEndpoints
from trainer.evaluate.evaluations.spec import ServedModel, operator_rules
from trainer.evaluate.scored_arms import ArmScores
from trainer.http import CurrentCaller
from trainer.installation import Installation
from trainer.ladder import spec
from trainer.ladder.kind import LadderKind
from trainer.ladder.spec import (
    COMPARISONS,
    Labels,
    LadderBody,
    LadderDetails,
    LadderSpec,
    Rungs,
    scores_file,
)
from trainer.runs.kind import RunDraft
from trainer.runs.notifier import Notifier
from trainer.runs.service import RunKey, RunService
from trainer.runs.spec import training_run_spec
from trainer.runs.state import Event, Run
from trainer.runs.waiting import WaitingLines
from trainer.validation import validated

DAY_S: Final = 86_400
MIN_KEPT_DAYS: Final = 1
"""However short the operator keeps what belongs to runs: the ladder asks the versions before it ends."""


class Ladders(RunService):
    """All ladders of this trainer. ``endpoints``: the operator's, which may be teachers."""

    def __init__(
        self,
        ladder: LadderKind,
        settings: Settings,
        installation: Installation,
        model: ServedModel,
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
        endpoints: OperatorEndpoints,
    ) -> None:
        super().__init__(ladder, settings, database, notifier, lines)
        self._ladder = ladder
        self._endpoints = endpoints
        self._installation = installation
        self._model = model

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        rungs = await asyncio.to_thread(self._shown_rungs, run)
        labels = await asyncio.to_thread(self.directories.read, run.id, spec.LABELS, Labels)
        store = await asyncio.to_thread(self._store, run.id)
        return ladder_object(run, waiting, rungs, labels, store)

    def _store(self, run_id: str) -> str | None:
        """The store of examples that the ladder has made, also one whose rung it then left out."""
        try:
            return (self.directories.path_of(run_id) / spec.STORE).read_text("utf-8").strip()
        except FileNotFoundError:
            return None

    def _shown_rungs(self, run: Run) -> list[dict[str, Any]]:
        rungs = self.directories.read(run.id, spec.RUNGS, Rungs)
        if rungs is None:
            return []
        so_far = self._ladder.provisional(run)
        stored = (self.directories.read(run.id, scores_file(purpose), ArmScores) for purpose in COMPARISONS)
        means = {
            arm.label: sum(arm.scores) / len(arm.scores)
            for scores in stored
            if scores is not None
            for arm in scores.arms
        }
        return [
            {
                "key": rung.key,
                "title": rung.title,
                "model": rung.model,
                "mean": means.get(rung.key),
                "provisional": None if rung.key in means else so_far.get(rung.key),
                "vector_store_id": rung.store,
            }
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
            NotFound: There is no teacher of that name.
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
        prices = self._teacher_prices(context)
        ladder = LadderSpec(
            **dict(training_run_spec(self.kind.new_id(), caller.project, self._installation, settings)),
            **dict(self._model),
            **dict(operator_rules(settings)),
            seed=secrets.randbelow(2**31),
            prices=settings.prices,
            teacher_prices=prices,
            keep_subsets_s=max(settings.keep_days, MIN_KEPT_DAYS) * DAY_S,
            body=body.model_copy(update={"adapter": context.adapter}),
            context_of_request=context,
        )
        return RunDraft(
            kind=self.kind.name,
            id=ladder.id,
            spec=ladder,
            body=request | _file_ids(context),
            adapters=_adapters(context),
            stores=context.stores,
            details=LadderDetails(adapter=context.adapter).model_dump(mode="json"),
        )

    def _teacher_prices(self, context: LadderContext) -> TokenPrices | None:
        """An outside teacher's prices, if they are set. Raises NotFound if there is no such teacher."""
        if context.teacher is None or not context.teacher.outside:
            return None
        endpoint = self._endpoints.endpoints.get(context.teacher.name)
        if endpoint is None or not endpoint.teacher:
            known = (
                ", ".join(sorted(name for name, each in self._endpoints.endpoints.items() if each.teacher)) or "none"
            )
            raise NotFound(
                f"`teacher`: {context.teacher.name[:64]!r} is neither a model that the key may use nor a teacher that "
                f"the operator offers ({known})",
                param="teacher",
                code="teacher_not_found",
            )
        return endpoint.prices

    # reading

    async def events(self, caller: CurrentCaller, ladder_id: str, *, limit: int) -> dict[str, Any]:
        """The ladder's last events, newest first. Raises NotFound."""

        return await self.events_page(caller, ladder_id, limit=limit, show=_event_object)


def ladder_object(
    run: Run, waiting: Waiting | None, rungs: list[dict[str, Any]], labels: Labels | None, store: str | None
) -> dict[str, Any]:
    """The object of one ladder.

    Args:
        rungs: What is there by now, the cheapest first.
        labels: How far the teacher is; None as long as none is asked.
        store: The vector store that it has made, None if there is none.
    """
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
        "teacher": run.body.get("teacher"),
        "unlabelled_file": run.body.get("unlabelled_file"),
        "labels": None if labels is None else _labels_object(labels),
        "children": [{"id": child, "purpose": purpose} for child, purpose in details.purposes.items()],
        "waiting": waiting.model_dump(mode="json") if waiting is not None else None,
        "rungs": rungs,
        "vector_store_id": store,
        "advice": result.get("advice"),
        "rung": result.get("rung"),
        "model": result.get("model"),
        "sentence": result.get("sentence"),
        "result_files": list(result.get("files") or ()),
        "seconds": result.get("seconds"),
        "error": result.get("error"),
        "metadata": run.body.get("metadata"),
    }


def _adapters(context: LadderContext) -> tuple[str, ...]:
    """The adapter that it makes versions of, and the one that labels its prompts, whose answers it shows."""
    teacher = context.teacher
    labels = teacher is not None and not teacher.outside and "@" in teacher.name
    return tuple(sorted({context.adapter} | ({teacher.name.partition("@")[0]} if teacher and labels else set())))


def _file_ids(context: LadderContext) -> dict[str, str]:
    """The ids of the files, which the request may have named by datasets."""
    files = {"training_file": context.training_file, "unlabelled_file": context.unlabelled_file}
    return {field: file.id for field, file in files.items() if file is not None}


def _labels_object(labels: Labels) -> dict[str, Any]:
    shown = labels.model_dump(include={"teacher", "outside", "prompts", "answered", "refused", "truncated", "error"})
    return shown | {"file": None if labels.file is None else labels.file.id}


def _event_object(event: Event) -> dict[str, Any]:
    return {
        "object": "ladder.event",
        "id": f"{event.run}-{event.number}",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
    }
