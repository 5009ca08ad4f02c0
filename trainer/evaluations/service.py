"""Evaluations: made, listed, cancelled, read. What a worker does of them is the runner's."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from typing import Any, Final

import sqlalchemy as sa

from trainer.config import Installation, Settings
from trainer.errors import Broken, Missing, NoSpace, NotFinished, TooMany, WrongState
from trainer.evaluate.arms import base_label
from trainer.evaluations import records
from trainer.evaluations.asked import Context, EvaluationBody, read_request
from trainer.evaluations.objects import evaluation_object
from trainer.evaluations.place import EvaluationPlace
from trainer.evaluations.records import Draft
from trainer.evaluations.spec import EvaluationJob
from trainer.evaluations.state import Evaluation, Status
from trainer.evaluations.tables import idempotency
from trainer.jobs.database import Database
from trainer.jobs.idempotency import Retry, made_before, retry_of
from trainer.jobs.objects import list_object
from trainer.jobs.pulse import Pulse
from trainer.jobs.service import JobKey, Who
from trainer.jobs.spec import Control

SETTLE_S: Final = 10.0
"""How long an answer to cancel waits for the worker, which looks twice a second."""
LOOK_S: Final = 0.5


class Evaluations:
    """All evaluations of this trainer.

    Args:
        positions: The base's longest context, tokens.
    """

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        positions: int,
        database: Database,
        place: EvaluationPlace,
        pulse: Pulse,
    ) -> None:
        self._settings = settings
        self._installation = installation
        self._context_tokens = installation.context or positions
        self._database = database
        self._place = place
        self._pulse = pulse

    async def create(
        self, who: Who, request: dict[str, Any], context: Context, key: JobKey, idempotency_key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Make an evaluation; the object, and whether it was there already for the same Idempotency-Key.

        Raises:
            Invalid, UnknownParameter: A field is wrong.
            KeyReused: The Idempotency-Key came with another body.
            TooMany: The project has enough that are not over.
            NoSpace: The disk is full.
        """
        body = read_request(request)
        retry = retry_of(idempotency_key, request)
        known = await self._database.run(lambda db: _replayed(db, who, retry))
        if known is not None:
            return await self._shown(known), True
        await asyncio.to_thread(_check, body, context, self._settings)
        job = self._job(who, body, context)
        try:
            await asyncio.to_thread(self._place.make, job, key.secret)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("the trainer's disk is full; nothing was made") from error
            raise Broken("the evaluation's folder could not be made") from error
        draft = Draft(
            id=job.id,
            project=who.project,
            key_id=who.key_id,
            job_key_id=key.id,
            created_at=job.created_at,
            body=request,
            arms=_arms(body, context, self._installation.base_name),
        )
        evaluation, made = await self._add(who, draft, retry)
        self._pulse.beat()
        return await self._shown(evaluation), not made

    async def _add(self, who: Who, draft: Draft, retry: Retry | None) -> tuple[Evaluation, bool]:
        def add(db: sa.Connection) -> tuple[Evaluation, bool]:
            known = _replayed(db, who, retry)
            if known is not None:
                return known, False
            if records.open_ones(db, who.project) >= self._settings.max_queued:
                raise TooMany(
                    f"the project has {self._settings.max_queued} evaluations that are not over: wait, or cancel one",
                    code="too_many_evaluations",
                    retry_after_s=60,
                )
            return records.add(db, draft, retry), True

        kept = False
        try:
            evaluation, kept = await self._database.run(add)
        finally:
            if not kept:
                await asyncio.to_thread(self._place.discard, draft.id)
        return evaluation, kept

    def _job(self, who: Who, body: EvaluationBody, context: Context) -> EvaluationJob:
        settings = self._settings
        return EvaluationJob(
            id=f"eval-{secrets.token_hex(12)}",
            project=who.project,
            created_at=int(time.time()),
            gateway=self._installation.gateway,
            base_name=self._installation.base_name,
            context_tokens=self._context_tokens,
            body=body,
            context=context,
            min_examples=settings.min_examples,
            smallest_difference=settings.smallest_difference,
            forget_accuracy=settings.forget_accuracy,
            forget_perplexity=settings.forget_perplexity,
            most_examples=settings.evaluate_max,
            concurrency=settings.evaluate_concurrency,
            repeats=settings.evaluate_repeats,
        )

    # looking

    async def get(self, who: Who, evaluation_id: str) -> dict[str, Any]:
        """One evaluation. Raises Missing: it is not there, or compares an adapter that the key may not use."""
        return await self._shown(await self._row(who, evaluation_id))

    async def page(self, who: Who, *, after: str | None, limit: int) -> dict[str, Any]:
        """The project's evaluations of adapters that the key may use, newest first. Raises Missing."""

        def read(db: sa.Connection) -> list[Evaluation]:
            before = _found(db, who, after).number if after is not None else None
            found: list[Evaluation] = []
            while len(found) <= limit:  # most keys may use all adapters, and need one round
                next_ones = records.page(db, who.project, before=before, limit=limit + 1)
                found += [one for one in next_ones if _may_see(who, one)]
                if len(next_ones) <= limit:
                    break
                before = next_ones[-1].number
            return found[: limit + 1]

        found = await self._database.run(read)
        return list_object([await self._shown(evaluation) for evaluation in found[:limit]], len(found) > limit)

    async def report(self, who: Who, evaluation_id: str) -> bytes:
        """The report as JSON. Raises Missing, NotFinished."""
        return await self._finished(who, evaluation_id, self._place.report)

    async def report_page(self, who: Who, evaluation_id: str) -> bytes:
        """The report as a page. Raises Missing, NotFinished."""
        return await self._finished(who, evaluation_id, self._place.page)

    async def _finished(self, who: Who, evaluation_id: str, read: Any) -> bytes:
        evaluation = await self._row(who, evaluation_id)
        if not evaluation.over:
            raise NotFinished(
                f"the evaluation `{evaluation.id}` is {evaluation.status}: it has no report yet", retry_after_s=5
            )
        content: bytes | None = await asyncio.to_thread(read, evaluation.id)
        if evaluation.status is not Status.SUCCEEDED or content is None:
            raise Missing(f"the evaluation `{evaluation.id}` is {evaluation.status} and has no report", param="id")
        return content

    async def _row(self, who: Who, evaluation_id: str) -> Evaluation:
        return await self._database.run(lambda db: _found(db, who, evaluation_id))

    async def _shown(self, evaluation: Evaluation) -> dict[str, Any]:
        running = evaluation.status is Status.RUNNING
        progress = await asyncio.to_thread(self._place.progress, evaluation.id) if running else None
        return evaluation_object(evaluation, progress)

    # changing

    async def cancel(self, who: Who, evaluation_id: str) -> dict[str, Any]:
        """End an evaluation for good. Raises Missing, WrongState."""

        def note(db: sa.Connection) -> Evaluation:
            found = _found(db, who, evaluation_id)
            if found.over and found.status is not Status.CANCELLED:
                raise WrongState(f"the evaluation `{found.id}` has ended: it is {found.status}")
            return records.change(db, found.id, wanted=Control.CANCEL)

        evaluation = await self._database.run(note)
        self._pulse.beat()
        deadline = time.monotonic() + SETTLE_S
        while not evaluation.over and time.monotonic() < deadline:
            await self._pulse.wait(LOOK_S)
            evaluation = await self._row(who, evaluation_id)
        return await self._shown(evaluation)


def _check(body: EvaluationBody, context: Context, settings: Settings) -> None:
    from trainer.evaluations.wishes import check_wishes  # statistics and all: nobody but a new one has use for them

    check_wishes(body, context, settings)


def _found(db: sa.Connection, who: Who, evaluation_id: str) -> Evaluation:
    found = records.find(db, who.project, evaluation_id)
    if found is None or not _may_see(who, found):
        raise Missing(f"there is no evaluation {evaluation_id[:64]!r}", param="evaluation_id")
    return found


def _may_see(who: Who, evaluation: Evaluation) -> bool:
    """Whether the key may use every adapter that is compared: a report shows what each of them answers."""
    named = [str(arm["model"]) for arm in evaluation.arms if arm.get("endpoint") is None]
    return all(who.may_use(model.partition("@")[0]) for model in named if "@" in model)


def _replayed(db: sa.Connection, who: Who, retry: Retry | None) -> Evaluation | None:
    known = made_before(db, idempotency, who.project, retry, time.time())
    return None if known is None else records.get(db, known)


def _arms(body: EvaluationBody, context: Context, base: str) -> list[dict[str, Any]]:
    """The arms as an evaluation shows them; with ``model``, those that are known before the data are looked at."""
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
