"""What a job registers at the gateway: its version with its lineage, and the checkpoints of its last epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from adapters.base import BaseDescription
from adapters.names import checkpoint_alias
from trainer.data.prepare import Prepared
from trainer.errors import GatewayRefused, GatewayUnreachable
from trainer.finetune import spec
from trainer.finetune.spec import JobResult, JobSpec, TrainingPlan
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.tune.export import exported_checkpoints
from trainer.tune.lineage import METADATA_FILE, DataSource, Lineage, Metadata, packages

ALIAS: Final = "candidate"
DAY_S: Final = 86_400


def register(
    job: JobSpec, directory: RunDirectory, gateway: Gateway, *, plan: TrainingPlan, output: Path, metadata: Metadata
) -> JobResult:
    """Upload the adapter in `output`. From here on the job has succeeded, whatever the judging gives."""
    directory.emit_event("uploading the adapter; the gateway proves it before it serves")
    kept_s = job.keep_version_s
    version = gateway.push(
        job.adapter,
        output,
        base=job.base_name,
        alias=ALIAS if kept_s is None else "",  # an alias would keep it
        settings=_settings(plan),
        metadata=metadata.model_dump_json(),
        expires_at=None if kept_s is None else int(time.time() + kept_s),
    )
    name = f"{version['adapter']}@{version['version']}"
    training = metadata.training
    result = JobResult(
        status="succeeded",
        fine_tuned_model=name,
        digest=version["digest"],
        held_back=(version.get("held_back") or {}).get("message"),
        trained_tokens=training.trained_tokens,
        seconds=training.seconds,
        device=training.device,
        cost=training.cost or 0.0,
        final_loss=training.final_loss,
    )
    directory.write(spec.PUSHED, result)
    days = (kept_s or 0) / DAY_S
    kept = f"for {days:g} day{'s' * (days != 1)} unless it is promoted"
    known = f"also as {job.adapter}:{ALIAS}" if kept_s is None else kept
    directory.emit_event(f"{name} is proven and serves, {known}")
    if result.held_back is not None:
        directory.emit_event(f"{name} is held back from `live`: {result.held_back}", level="warn")
    return result


def register_checkpoints(
    job: JobSpec,
    directory: RunDirectory,
    gateway: Gateway,
    check: Callable[[], None],
    *,
    plan: TrainingPlan,
    output: Path,
    metadata: Metadata,
    result: JobResult,
) -> JobResult:
    """Upload the checkpoints beside the adapter in `output`; returns the result with those that answer now.

    Each becomes a version that expires, under its alias (`adapters.names.checkpoint_alias`). One that the gateway does
    not take is left out, with a warning: the job has succeeded without it.
    """
    if not job.checkpoint_versions:
        return result
    for step, path in exported_checkpoints(output).items():
        if step in result.checkpoints:
            continue
        check()
        alias = checkpoint_alias(job.id, step)
        try:
            version = gateway.push(
                job.adapter,
                path,
                base=job.base_name,
                alias=alias,
                settings=_settings(plan),
                metadata=(path / METADATA_FILE).read_text(),
                expires_at=int(time.time() + job.keep_checkpoints_s),
            )
        except (GatewayRefused, GatewayUnreachable) as error:
            directory.emit_event(f"the checkpoint of step {step} does not answer: {error.message}", level="warn")
            continue
        name = f"{version['adapter']}@{version['version']}"
        directory.emit_event(f"the checkpoint of step {step} answers as {job.adapter}:{alias} ({name})")
        result = _with_checkpoint(directory, result, step, name)
    return _name_the_result(job, directory, gateway, metadata.training.exported_step, result)


def _name_the_result(
    job: JobSpec, directory: RunDirectory, gateway: Gateway, step: int, result: JobResult
) -> JobResult:
    """Let the result's own version answer under its checkpoint's name as well, which a client may have noted before."""
    name = str(result.fine_tuned_model)
    if step in result.checkpoints:
        return result
    try:
        gateway.set_alias(name, checkpoint_alias(job.id, step), None)
    except (GatewayRefused, GatewayUnreachable) as error:
        directory.emit_event(f"the checkpoint of step {step} answers only as {name}: {error.message}", level="warn")
    return _with_checkpoint(directory, result, step, name)


def _with_checkpoint(directory: RunDirectory, result: JobResult, step: int, name: str) -> JobResult:
    result = result.model_copy(update={"checkpoints": {**result.checkpoints, step: name}})
    directory.write(spec.PUSHED, result)
    return result


def _settings(plan: TrainingPlan) -> dict[str, Any]:
    return plan.model_dump(include={"system_prompt", "grounding", "sampling"}, exclude_none=True)


def lineage_of(job: JobSpec, plan: TrainingPlan, prepared: Prepared, description: BaseDescription) -> Lineage:
    """All that decides the job's weights, and where it comes from."""
    file = job.validation_file
    held_out = DataSource(name=file.filename, sha256=file.sha256, examples=len(prepared.held_out)) if file else None
    files = [job.training_file, *([job.validation_file] if job.validation_file else [])]
    report = prepared.report
    return Lineage(
        data=(DataSource(name=report.file, sha256=report.sha256, examples=report.trained_on),),
        recipe=plan.recipe,
        system_prompt=plan.system_prompt,
        held_out=held_out,
        split_off=report.held_out.lines,
        drop_long=job.overflow_policy == "drop",
        overflow=job.overflow,
        validation=() if report.validation is None else report.validation.lines,
        base_name=job.base_name,
        base=description.fingerprint,
        parent=job.parent,
        job=job.id,
        files=tuple(file.id for file in files),
        datasets=job.datasets,
        packages=packages(),
    )


def checkpoint_key(lineage: Lineage, plan: TrainingPlan) -> str:
    """The key of the job's checkpoints: with the base's name of when the plan was made, so that they stay the job's if
    the base is renamed. Whether it is the same base, its fingerprint tells."""
    return lineage.model_copy(update={"base_name": plan.base_name or lineage.base_name}).key()
