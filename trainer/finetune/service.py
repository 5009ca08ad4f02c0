"""Fine-tuning jobs for their routes: what is asked for is checked, and becomes what a worker is to do."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from adapters.protocol.runs import JobContext
from trainer.config import Installation, Settings
from trainer.data.report import Report
from trainer.database import Database
from trainer.errors import Invalid, MemoryTooSmall, Missing, WishRefused
from trainer.finetune import capacity, kind
from trainer.finetune.kind import FinetuneKind
from trainer.finetune.objects import CHECKPOINT_ID, EVENT_ID, checkpoint_object, event_object, job_object, number_in
from trainer.finetune.schemas import JobRequest, read_body
from trainer.finetune.spec import JobDetails, JobSpec, JudgingWish
from trainer.http import CurrentCaller, list_object
from trainer.runs import journal
from trainer.runs.idempotency import retry_of
from trainer.runs.notifier import Notifier
from trainer.runs.records import Draft
from trainer.runs.service import RunKey, RunService
from trainer.runs.state import Event, Run
from trainer.tune import auto


class Jobs(RunService):
    """All fine-tuning jobs of this trainer.

    Args:
        working: Gives the process ids of the workers that have the device now.
    """

    def __init__(
        self,
        finetune: FinetuneKind,
        settings: Settings,
        installation: Installation,
        base: capacity.Base,
        database: Database,
        notifier: Notifier,
        working: Callable[[], list[int]],
    ) -> None:
        super().__init__(finetune, settings, database, notifier)
        self._finetune = finetune
        self._installation = installation
        self._base = base
        self._working = working

    async def show(self, run: Run) -> dict[str, Any]:
        """See RunService."""
        return job_object(run)

    async def create(
        self, caller: CurrentCaller, content: object, context: JobContext, key: RunKey, idempotency_key: str | None
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
        known = await self.made_before(caller, retry)
        if known is not None:
            return job_object(known), True
        await self._check(asked, context)
        spec = self._spec(caller, asked, context, await asyncio.to_thread(_judging, asked, self._settings))
        details = JobDetails(adapter=spec.adapter, seed=spec.seed, device=spec.device)
        draft = Draft(
            id=spec.id,
            kind=kind.NAME,
            project=caller.project,
            key_id=caller.key_id,
            run_key_id=key.id,
            created_at=spec.created_at,
            body=asked.body.model_dump(exclude_unset=True),
            adapters=(spec.adapter,),
            details=details.model_dump(mode="json"),
            status=kind.VALIDATE.waits_as,
        )
        run, made = await self.make(caller, draft, spec, key, retry, f"Created fine-tuning job: {spec.id}")
        return job_object(run), not made

    async def replay(self, caller: CurrentCaller, content: object, idempotency_key: str | None) -> dict[str, Any]:
        """The job that was made with the Idempotency-Key before; nothing is looked at but the key and the body.

        Raises:
            Missing: None was, or one that the caller may not see.
            KeyReused: It came with another body.
        """
        known = await self.made_before(caller, retry_of(idempotency_key, content))
        if known is None or not caller.may_see(known.adapters):
            raise Missing("no job was made with this Idempotency-Key")
        return job_object(known)

    async def _check(self, asked: JobRequest, context: JobContext) -> None:
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
        on_gpu = capacity.kind(self._settings.device) == "cuda"
        try:
            length = auto.max_length(wish, context=self._installation.context, positions=self._base.positions)
            recipe = capacity.at_least(
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
        longest = capacity.SHORT_TOKENS if wish.max_length == "auto" else length
        needed = capacity.need(
            recipe, self._base, longest=min(longest, max(8, context.training_file.bytes)), on_gpu=on_gpu
        )
        room = await asyncio.to_thread(capacity.room, self._settings.device, self._installation, self._working())
        fit = capacity.Fit(needed, room)
        if not fit.fits:
            raise MemoryTooSmall(
                f"the job cannot be done here: {fit.words()}. A smaller batch_size, max_length or lora_rank, or "
                "quantization nf4, needs less",
                param=asked.place("batch_size"),
            )

    def _trains_on(self, context: JobContext) -> None:
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

    def _spec(self, caller: CurrentCaller, asked: JobRequest, context: JobContext, judging: JudgingWish) -> JobSpec:
        settings, installation, body = self._settings, self._installation, asked.body
        return JobSpec(
            id=self.new_id("ftjob"),
            project=caller.project,
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

    async def events(self, caller: CurrentCaller, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A job's events, newest first. Raises Missing, Invalid."""

        def read(db: sa.Connection) -> list[Event]:
            run = self.find(db, caller, job_id)
            before = number_in(run, after, EVENT_ID) if after is not None else None
            return journal.newest(db, run.id, before=before, limit=limit + 1)

        found = await self._database.run(read)
        return list_object([event_object(event) for event in found[:limit]], len(found) > limit)

    async def checkpoints(self, caller: CurrentCaller, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A job's checkpoints, newest first. Raises Missing, Invalid."""

        def read(db: sa.Connection) -> list[dict[str, Any]]:
            run = self.find(db, caller, job_id)
            before = number_in(run, after, CHECKPOINT_ID) if after is not None else None
            rows = journal.newest_checkpoints(db, run.id, before=before, limit=limit + 1)
            newest = journal.newest_checkpoints(db, run.id, before=None, limit=1)
            return [checkpoint_object(run, row, last=row == newest[0]) for row in rows]

        found = await self._database.run(read)
        return list_object(found[:limit], len(found) > limit)

    async def report(self, caller: CurrentCaller, job_id: str) -> Report:
        """A job's quality report. Raises Missing."""
        run = await self.row(caller, job_id)
        report = await asyncio.to_thread(self._finetune.report, run.id)
        if report is None:
            raise Missing(f"the job `{run.id}` has no quality report (yet)")
        return report


def _judging(asked: JobRequest, settings: Settings) -> JudgingWish:
    from trainer.finetune.options import judging_wish  # statistics and all: nobody but a new job has use for them

    return judging_wish(asked, settings)
