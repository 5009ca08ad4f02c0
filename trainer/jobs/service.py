"""Fine-tuning jobs: made, listed, cancelled, paused, resumed. What a worker does of them is the supervisor's."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import sqlalchemy as sa

from trainer.config import Installation, Settings
from trainer.data.report import Report
from trainer.errors import (
    Broken,
    Invalid,
    MemoryTooSmall,
    Missing,
    NoSpace,
    TooMany,
    WishRefused,
    WrongState,
)
from trainer.jobs import fit, journal, records
from trainer.jobs.asked import Asked, Context, read_body
from trainer.jobs.database import Database
from trainer.jobs.idempotency import Retry, made_before, retry_of
from trainer.jobs.objects import checkpoint_object, event_object, job_object, list_object
from trainer.jobs.place import Place
from trainer.jobs.pulse import Pulse
from trainer.jobs.records import Draft
from trainer.jobs.spec import Control, JobSpec, JudgingWish
from trainer.jobs.state import Event, Job, Status
from trainer.jobs.tables import idempotency
from trainer.tune import auto

SETTLE_S: Final = 10.0
"""How long an answer to cancel, pause and resume waits for the worker, which looks between two steps."""
LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks, as the gateway says it. ``adapters`` are globs of the names that the key may use; None: of all."""

    project: str
    key_id: str
    adapters: tuple[str, ...] | None = None

    def may_use(self, adapter: str) -> bool:
        """Whether the key's globs match the adapter's name."""
        return self.adapters is None or any(fnmatchcase(adapter, glob) for glob in self.adapters)


@dataclass(frozen=True, slots=True)
class JobKey:
    """The key that the gateway has minted for a job."""

    secret: str
    id: str


class Jobs:
    """All jobs of this trainer.

    Args:
        working: Gives the process ids of the workers that run now.
    """

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        base: fit.Base,
        database: Database,
        place: Place,
        pulse: Pulse,
        working: Callable[[], list[int]],
    ) -> None:
        self._settings = settings
        self._installation = installation
        self._base = base
        self._database = database
        self._place = place
        self._pulse = pulse
        self._working = working
        self._given_up: set[str] = set()
        """Ids of keys that the gateway revokes, because no job had been made with them when it asked."""

    async def create(
        self, who: Who, content: object, context: Context, key: JobKey, idempotency_key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Make a job; the object, and whether it was there already for the same Idempotency-Key.

        Raises:
            Invalid, UnknownParameter, Unsupported: A field is wrong, or could not be served.
            MemoryTooSmall: It cannot fit.
            KeyReused: The Idempotency-Key came with another body.
            TooMany: The project has enough jobs.
            NoSpace: The disk is full.
        """
        asked = read_body(content)
        retry = retry_of(idempotency_key, content)
        known = await self._database.run(lambda db: _replayed(db, who, retry))
        if known is not None:
            return job_object(known), True
        await self._check(asked, context)
        spec = self._spec(who, asked, context, await asyncio.to_thread(_judging, asked, self._settings))
        try:
            await asyncio.to_thread(self._place.make, spec, key.secret)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("the trainer's disk is full; nothing was made") from error
            raise Broken("the job's folder could not be made") from error
        draft = Draft(
            id=spec.id,
            project=who.project,
            key_id=who.key_id,
            job_key_id=key.id,
            created_at=spec.created_at,
            body=asked.body.model_dump(exclude_unset=True),
            seed=spec.seed,
            adapter=spec.adapter,
            device=spec.device,
        )
        job, made = await self._add(who, draft, retry)
        self._pulse.beat()
        return job_object(job), not made

    async def replay(self, who: Who, content: object, idempotency_key: str | None) -> dict[str, Any]:
        """The job that was made with the Idempotency-Key before; nothing is looked at but the key and the body.

        Raises:
            Missing: None was, or one that the caller may not see.
            KeyReused: It came with another body.
        """
        retry = retry_of(idempotency_key, content)
        known = await self._database.run(lambda db: _replayed(db, who, retry))
        if known is None or not who.may_use(known.adapter):
            raise Missing("no job was made with this Idempotency-Key")
        return job_object(known)

    async def claim(self, who: Who, job_key_id: str) -> dict[str, Any] | None:
        """The job that was made with a key; None where there is none, and then there never will be.

        A gateway that has got no answer asks this before it revokes the key.
        """

        def ask(db: sa.Connection) -> Job | None:
            job = records.made_with(db, who.project, job_key_id)
            if job is None:  # a creation may still be under way: in this thread, after this
                self._given_up.add(job_key_id)
            return job

        job = await self._database.run(ask)
        return None if job is None else job_object(job)

    async def _add(self, who: Who, draft: Draft, retry: Retry | None) -> tuple[Job, bool]:
        def add(db: sa.Connection) -> tuple[Job, bool]:
            known = _replayed(db, who, retry)
            if known is not None:
                return known, False
            if draft.job_key_id in self._given_up:
                raise Broken("the gateway has stopped waiting for this job; nothing was made")
            if records.open_jobs(db, who.project) >= self._settings.max_queued:
                raise TooMany(
                    f"the project has {self._settings.max_queued} jobs that are not over: wait, or cancel one",
                    retry_after_s=60,
                )
            made = records.add(db, draft, retry)
            return journal.say(db, made, f"Created fine-tuning job: {made.id}"), True

        kept = False
        try:
            job, kept = await self._database.run(add)
        finally:
            if not kept:
                await asyncio.to_thread(self._place.discard, draft.id)
        return job, kept

    async def _check(self, asked: Asked, context: Context) -> None:
        """Refuse what could not be served or done. Raises Invalid, MemoryTooSmall."""
        wish, max_rank = asked.wish, self._installation.max_rank
        if wish.target_modules != "all-linear":
            unknown = self._base.unknown(wish.target_modules)
            if unknown or not wish.target_modules:
                place = asked.place("target_modules")
                raise Invalid(
                    f"`{place}` names {', '.join(map(repr, unknown)) or 'nothing'}; linear layers of the base are "
                    f"{', '.join(self._base.endings())}",
                    param=place,
                )
        self._trains_on(context)
        on_gpu = fit.kind(self._settings.device) == "cuda"
        try:
            length = auto.max_length(wish, context=self._installation.context, positions=self._base.positions)
            recipe = fit.at_least(
                wish,
                self._base,
                max_rank=max_rank,
                length=length,
                file_bytes=context.training_file.bytes,
                on_gpu=on_gpu,
                parent=context.parent_shape,
            )
        except WishRefused as refused:
            place = asked.place(refused.param)
            raise Invalid(refused.message.replace(f"`{refused.param}`", f"`{place}`", 1), param=place) from refused
        longest = fit.SHORT_TOKENS if wish.max_length == "auto" else length
        needed = fit.need(recipe, self._base, longest=min(longest, max(8, context.training_file.bytes)), on_gpu=on_gpu)
        room = await asyncio.to_thread(fit.room, self._settings.device, self._installation, self._working())
        fits = fit.Fit(needed, room)
        if not fits.fits:
            raise MemoryTooSmall(
                f"the job cannot be done here: {fits.words()}. A smaller batch_size, max_length or lora_rank, or "
                "quantization nf4, needs less",
                param=asked.place("batch_size"),
            )

    def _trains_on(self, context: Context) -> None:
        """Refuse a parent that leaves out modules of those that a LoRA would be put on. Raises Invalid."""
        parent = context.parent_shape
        if parent is None or parent.modules is None:
            return
        there = len(self._base.matching(parent.target_modules))
        if parent.modules != there:
            raise Invalid(
                f"`model` is `{context.parent}`, which has a LoRA on {parent.modules} of the base's {there} layers "
                f"called {', '.join(parent.target_modules)}; a version is trained on from where it has one on all",
                param="model",
                code="parent_unsupported",
            )

    def _spec(self, who: Who, asked: Asked, context: Context, judging: JudgingWish) -> JobSpec:
        settings, installation, body = self._settings, self._installation, asked.body
        return JobSpec(
            id=f"ftjob-{secrets.token_hex(12)}",
            project=who.project,
            created_at=int(time.time()),
            gateway=installation.gateway,
            adapter=context.adapter,
            base_dir=installation.base,
            base_name=installation.base_name,
            max_rank=installation.max_rank,
            context=installation.context,
            dtype=installation.dtype,
            parent=context.parent,
            training_file=context.training_file,
            validation_file=context.validation_file,
            wish=asked.wish,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            system_prompt=asked.options.system_prompt,
            strict=asked.options.strict,
            drop_long=asked.options.drop_long,
            metadata=body.metadata or {},
            device=settings.device,
            checkpoint_s=settings.checkpoint_s,
            price_per_hour=settings.price_per_hour,
            yield_above=settings.yield_above,
            yield_most_s=settings.yield_most_s,
            judging=judging,
        )

    # looking

    async def get(self, who: Who, job_id: str) -> dict[str, Any]:
        """One job. Raises Missing."""
        return job_object(await self.row(who, job_id))

    async def row(self, who: Who, job_id: str) -> Job:
        """One job as it is on record. Raises Missing: it is not there, or of an adapter that the key may not use."""
        return await self._database.run(lambda db: _found(db, who, job_id))

    async def page(
        self, who: Who, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        """The project's jobs, newest first; ``metadata`` as in ``records.page``. Raises Missing."""

        def read(db: sa.Connection) -> list[Job]:
            before = _found(db, who, after).number if after is not None else None
            seen = None
            if who.adapters is not None:
                seen = [name for name in records.adapters(db, who.project) if who.may_use(name)]
            return records.page(db, who.project, before=before, limit=limit + 1, metadata=metadata, adapters=seen)

        found = await self._database.run(read)
        return list_object([job_object(job) for job in found[:limit]], len(found) > limit)

    async def events(self, who: Who, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A job's events, newest first. Raises Missing, Invalid."""

        def read(db: sa.Connection) -> list[Event]:
            job = _found(db, who, job_id)
            before = event_number(job, after) if after is not None else None
            return journal.newest(db, job.id, before=before, limit=limit + 1)

        found = await self._database.run(read)
        return list_object([event_object(event) for event in found[:limit]], len(found) > limit)

    async def checkpoints(self, who: Who, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A job's checkpoints, newest first. Raises Missing, Invalid."""

        def read(db: sa.Connection) -> list[dict[str, Any]]:
            job = _found(db, who, job_id)
            before = _number(job, after, "ftckpt") if after is not None else None
            rows = journal.newest_checkpoints(db, job.id, before=before, limit=limit + 1)
            newest = journal.newest_checkpoints(db, job.id, before=None, limit=1)
            return [checkpoint_object(job, row, last=row == newest[0]) for row in rows]

        found = await self._database.run(read)
        return list_object(found[:limit], len(found) > limit)

    async def report(self, who: Who, job_id: str) -> Report:
        """A job's quality report. Raises Missing."""
        job = await self.row(who, job_id)
        report = await asyncio.to_thread(self._place.report, job.id)
        if report is None:
            raise Missing(f"the job `{job.id}` has no quality report (yet)")
        return report

    # changing

    async def cancel(self, who: Who, job_id: str) -> dict[str, Any]:
        """End a job for good. Raises Missing, WrongState."""
        return await self._want(who, job_id, Control.CANCEL)

    async def pause(self, who: Who, job_id: str) -> dict[str, Any]:
        """Have a job stand still and give the device away. Raises Missing, WrongState."""
        return await self._want(who, job_id, Control.PAUSE)

    async def resume(self, who: Who, job_id: str) -> dict[str, Any]:
        """Have a paused job go on, in its turn. Raises Missing, WrongState."""
        return await self._want(who, job_id, Control.RUN)

    async def _want(self, who: Who, job_id: str, wanted: Control) -> dict[str, Any]:
        def note(db: sa.Connection) -> Job:
            job = _found(db, who, job_id)
            _allow(job, wanted)
            return records.change(db, job.id, wanted=wanted)

        job = await self._database.run(note)
        self._pulse.beat()
        deadline = time.monotonic() + SETTLE_S
        while not _settled(job) and job.wanted is wanted and time.monotonic() < deadline:
            await self._pulse.wait(LOOK_S)
            job = await self.row(who, job_id)
        return job_object(job)


def _judging(asked: Asked, settings: Settings) -> JudgingWish:
    from trainer.jobs.wishes import judging_wish  # statistics and all: nobody but a new job has use for them

    return judging_wish(asked, settings)


def event_number(job: Job, event_id: str) -> int:
    """The place of an event of the job, from its id. Raises Invalid."""
    return _number(job, event_id, "ftevent")


def _number(job: Job, found: str, prefix: str) -> int:
    number = found.removeprefix(f"{prefix}-{job.id.removeprefix('ftjob-')}-")
    if number == found or not number.isdecimal() or len(number) > 15:
        raise Invalid(f"`after` is {found[:80]!r}, which is none of this job's", param="after")
    return int(number)


def _found(db: sa.Connection, who: Who, job_id: str) -> Job:
    job = records.find(db, who.project, job_id)
    if job is None or not who.may_use(job.adapter):
        raise Missing(f"there is no fine-tuning job {job_id[:64]!r}", param="fine_tuning_job_id")
    return job


def _allow(job: Job, wanted: Control) -> None:
    """Raise WrongState where that cannot be wanted of the job. Wanting the same again is no fault."""
    if job.over and not (wanted is Control.CANCEL and job.status is Status.CANCELLED):
        raise WrongState(f"the job `{job.id}` has ended: it is {job.status}")
    if wanted is not Control.CANCEL and job.wanted is Control.CANCEL:
        raise WrongState(f"the job `{job.id}` is being cancelled")


def _settled(job: Job) -> bool:
    """Whether what is wanted of the job has come true."""
    if job.wanted is Control.RUN:
        return job.status is not Status.PAUSED
    return job.over or (job.wanted is Control.PAUSE and job.status is Status.PAUSED)


def _replayed(db: sa.Connection, who: Who, retry: Retry | None) -> Job | None:
    known = made_before(db, idempotency, who.project, retry, time.time())
    return None if known is None else records.get(db, known)
