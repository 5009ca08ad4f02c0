"""The fine-tuning API: checks requests, turns them into job specs, and reads jobs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa

from adapters.protocol.reports import Waiting
from adapters.protocol.runs import JobContext
from trainer.config import Settings
from trainer.data.report import Report
from trainer.database import Database
from trainer.errors import InvalidField, InvalidHyperparameter, MemoryTooSmall, NotFound
from trainer.finetune import capacity
from trainer.finetune.kind import FinetuneKind
from trainer.finetune.objects import CHECKPOINT_ID, EVENT_ID, checkpoint_object, event_object, job_object, number_in
from trainer.finetune.schemas import JobRequest, read_body
from trainer.finetune.spec import EvaluationOptions, JobDetails, JobResult, JobSpec
from trainer.finetune.tracked import requested_trackers
from trainer.http import CurrentCaller, list_object
from trainer.installation import Installation
from trainer.runs import journal
from trainer.runs.idempotency import retry_of
from trainer.runs.kind import RunDraft
from trainer.runs.notifier import Notifier
from trainer.runs.service import RunKey, RunService
from trainer.runs.spec import training_run_spec
from trainer.runs.state import CheckpointRow, Run
from trainer.runs.waiting import WaitingLines
from trainer.tune import auto


class Jobs(RunService):
    """All fine-tuning jobs of this trainer.

    Args:
        working: Gives the process ids of the workers that use the device now.
    """

    def __init__(
        self,
        finetune: FinetuneKind,
        settings: Settings,
        installation: Installation,
        bases: Mapping[str, capacity.BaseModelInfo],
        database: Database,
        notifier: Notifier,
        lines: WaitingLines,
        working: Callable[[], list[int]],
    ) -> None:
        super().__init__(finetune, settings, database, notifier, lines)
        self._finetune = finetune
        self._installation = installation
        self._bases = bases
        self._working = working

    async def show(self, run: Run, waiting: Waiting | None) -> dict[str, Any]:
        """See RunService."""
        return job_object(run, waiting)

    async def create(
        self, caller: CurrentCaller, content: object, context: JobContext, key: RunKey, idempotency_key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Create a job; returns the job object, and whether an earlier request with this Idempotency-Key created it.

        Raises:
            InvalidField, UnknownParameter: A field is wrong.
            UnsupportedValue: `method` holds an unsupported method, or the engine could not serve a LoRA option.
            MemoryTooSmall: The training does not fit into memory.
            IdempotencyKeyReused: The Idempotency-Key was used with a different body.
            TooManyRequests: The project has the maximum number of unfinished jobs.
            DiskFull: The disk is full.
        """
        request = read_body(content)
        return await self.create_once(
            caller, content, key, idempotency_key, partial(self._draft, caller, request, context)
        )

    async def _draft(self, caller: CurrentCaller, request: JobRequest, context: JobContext) -> RunDraft:
        spec = await self._planned(caller, request, context)
        return RunDraft(
            kind=self.kind.name,
            id=spec.id,
            spec=spec,
            body=_with_file_ids(request.body.model_dump(exclude_unset=True), context),
            adapters=(spec.adapter,),
            stores=context.stores,
            details=JobDetails(adapter=spec.adapter, seed=spec.seed, device=spec.device).model_dump(mode="json"),
            trackers=requested_trackers(request.body.integrations, self._settings),
        )

    async def planned(self, caller: CurrentCaller, content: object, context: JobContext) -> JobSpec:
        """What the worker of such a job would be told; nothing is created. Raises as `create` about the request."""
        return await self._planned(caller, read_body(content), context)

    async def _planned(self, caller: CurrentCaller, request: JobRequest, context: JobContext) -> JobSpec:
        await self._check(request, context)
        return self._spec(caller, request, context, await asyncio.to_thread(_judging, request, self._settings))

    async def replay(self, caller: CurrentCaller, content: object, idempotency_key: str | None) -> dict[str, Any]:
        """The job that was created with this Idempotency-Key; only the key and the body are checked.

        Raises:
            NotFound: There is none, or the caller may not see it.
            IdempotencyKeyReused: The key was used with a different body.
        """
        previous = await self.find_previous_run(caller, retry_of(idempotency_key, content))
        if previous is None or not caller.may_see(previous.ownership):
            raise NotFound("no job was created with this Idempotency-Key")
        return (await self.show_to(caller, previous))[0]

    async def _check(self, request: JobRequest, context: JobContext) -> None:
        """Check that the result can be served and the training fits. Raises InvalidField, MemoryTooSmall."""
        installation = self._installation.on(context.base)
        base = self._bases[installation.base_name]
        hyperparameters, max_rank = request.hyperparameters, installation.max_rank
        if not base.modules:
            raise InvalidField(
                "`model`: the base has no linear layer that a LoRA can be trained for and served on", param="model"
            )
        if hyperparameters.target_modules != "all-linear":
            unknown = base.unknown_targets(hyperparameters.target_modules)
            if unknown or not hyperparameters.target_modules:
                place = request.place("target_modules")
                raise InvalidField(
                    f"`{place}`: {base.describe_unknown(unknown)}"
                    if unknown
                    else f"`{place}` is empty; name at least one of {', '.join(base.module_suffixes())}",
                    param=place,
                )
        _check_parent(context, base)
        on_gpu = capacity.device_type(self._settings.device) == "cuda"
        try:
            length = auto.max_length(hyperparameters, context=installation.context, positions=base.positions)
            recipe = capacity.minimal_recipe(
                hyperparameters,
                base,
                max_rank=max_rank,
                length=length,
                file_bytes=context.training_file.bytes,
                on_gpu=on_gpu,
                parent=context.parent_shape,
                objective=request.method,
            )
        except InvalidHyperparameter as refused:
            place = request.place(refused.param)
            raise InvalidField(refused.message.replace(f"`{refused.param}`", f"`{place}`", 1), param=place) from refused
        longest = capacity.ASSUMED_LONGEST if hyperparameters.max_length == "auto" else length
        needed = capacity.required_memory(
            recipe, base, longest=min(longest, max(8, context.training_file.bytes)), on_gpu=on_gpu
        )
        available = await asyncio.to_thread(
            capacity.available_memory, self._settings.device, self._installation, self._working()
        )
        check = capacity.CapacityCheck(needed, available)
        if not check.fits:
            raise MemoryTooSmall(
                f"the job does not fit into memory: {check.describe()}. Use a smaller max_length or lora_rank, or "
                "quantization nf4",
                param=request.place("max_length"),
            )

    def _spec(
        self, caller: CurrentCaller, request: JobRequest, context: JobContext, judging: EvaluationOptions
    ) -> JobSpec:
        body, installation = request.body, self._installation.on(context.base)
        return JobSpec(
            **dict(training_run_spec(self.kind.new_id(), caller.project, installation, self._settings)),
            adapter=context.adapter,
            parent=context.parent,
            training_file=context.training_file,
            validation_file=context.validation_file,
            datasets=context.datasets,
            stores=context.stores,
            wish=request.hyperparameters,
            seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
            system_prompt=request.options.system_prompt,
            grounding=request.options.grounding,
            sampling=request.options.sampling,
            strict=request.options.strict,
            overflow=request.options.overflow or ("drop" if request.options.drop_long else None),
            method=request.method,
            held_out_share=request.options.held_out_share,
            metadata=body.metadata or {},
            checkpoint_versions=self._settings.checkpoint_versions if self._settings.keep_days else 0,
            keep_checkpoints_s=self._settings.keep_days * 86_400,
            price_per_hour=self._settings.prices.device_hour or 0.0,
            judging=judging,
        )

    # reading

    async def events(self, caller: CurrentCaller, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the job's events, newest first. Raises NotFound, InvalidField."""

        def before(run: Run) -> int | None:
            return None if after is None else number_in(run, after, EVENT_ID)

        return await self.events_page(caller, job_id, limit=limit, show=event_object, before=before)

    async def checkpoints(self, caller: CurrentCaller, job_id: str, *, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the job's checkpoints, newest first. Raises NotFound, InvalidField."""

        def read(db: sa.Connection) -> tuple[Run, list[CheckpointRow], list[CheckpointRow]]:
            run = self.find(db, caller, job_id)
            before = number_in(run, after, CHECKPOINT_ID) if after is not None else None
            rows = journal.newest_checkpoints(db, run.id, before=before, limit=limit + 1)
            return run, rows, journal.newest_checkpoints(db, run.id, before=None, limit=1)

        run, rows, newest = await self._database.run(read)
        if run.result is not None:
            result: JobResult | None = JobResult.model_validate(run.result)
        else:
            result = await asyncio.to_thread(self._finetune.pushed, run.id)
        checkpoints = [checkpoint_object(run, row, result, last=row == newest[0]) for row in rows[:limit]]
        return list_object(checkpoints, len(rows) > limit)

    async def report(self, caller: CurrentCaller, job_id: str) -> Report:
        """A job's quality report. Raises NotFound."""
        run = await self.row(caller, job_id)
        report = await asyncio.to_thread(self._finetune.report, run.id)
        if report is None:
            raise NotFound(f"the job `{run.id}` has no quality report yet")
        return report


def _with_file_ids(body: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The body with the ids of the files that the gateway found under the names of datasets."""
    files = {"training_file": context.training_file, "validation_file": context.validation_file}
    return body | {param: file.id for param, file in files.items() if file is not None}


def _judging(request: JobRequest, settings: Settings) -> EvaluationOptions:
    from trainer.finetune.options import (
        evaluation_options,  # imports statistics libraries, which only job creation needs
    )

    return evaluation_options(request, settings)


def _check_parent(context: JobContext, base: capacity.BaseModelInfo) -> None:
    """Refuse a parent whose LoRA does not cover every layer of its target modules. Raises InvalidField."""
    parent = context.parent_shape
    if parent is None or parent.modules is None:
        return
    layers = len(base.matching_layers(parent.target_modules))
    if parent.modules != layers:
        raise InvalidField(
            f"`model`: `{context.parent}` adapts {parent.modules} of the base's {layers} layers named "
            f"{', '.join(parent.target_modules)}; a version can be trained further only if it adapts all of them",
            param="model",
            code="parent_unsupported",
        )
