"""``/v1/fine_tuning``: from HTTP to the jobs and back, in OpenAI's form.

Who asks stands in headers of the gateway, which has authorised all that a body names (``trainer.app`` lets nobody else
in).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.protocol.requests import Overflow
from adapters.protocol.runs import CreateJob
from trainer.data.checking import CheckOptions, DataChecks
from trainer.errors import InvalidField
from trainer.finetune.objects import event_number
from trainer.finetune.service import Jobs
from trainer.http import DEFAULT_LISTED, After, Caller, Limit, read_bounded, read_json
from trainer.runs.routes import Creation, add_run_routes, created
from trainer.runs.streaming import Streams
from trainer.validation import validated

FRAMING_BYTES: Final = 64 * 1024
CHUNK_BYTES: Final = 2**20
EVENT_STREAM: Final = "text/event-stream"
_METADATA: Final = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)


async def jobs(request: Request) -> Jobs:
    """The trainer's jobs."""
    service: Jobs = request.app.state.trainer.jobs
    return service


async def checks(request: Request) -> DataChecks:
    """The trainer's data checks."""
    data_checks: DataChecks = request.app.state.trainer.checks
    return data_checks


async def streams(request: Request) -> Streams:
    """The trainer's event streams."""
    open_streams: Streams = request.app.state.trainer.streams
    return open_streams


router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
internal = APIRouter(prefix="/internal/jobs")
"""What the gateway asks for itself: no client's path leads here."""
Service = Annotated[Jobs, Depends(jobs)]


@router.post("/jobs")
async def create_job(request: Request, caller: Caller, service: Service, headers: Creation) -> JSONResponse:
    """Create a job."""
    sent = validated(CreateJob, await read_json(request))
    return created(*await service.create(caller, sent.request, sent.context, headers.key, headers.idempotency_key))


@internal.post("/replay")
async def replay_job(
    request: Request, caller: Caller, service: Service, idempotency_key: Annotated[str, Header(max_length=255)]
) -> JSONResponse:
    """The job that an earlier request with this key and body created."""
    job = await service.replay(caller, await read_json(request), idempotency_key)
    return created(job, replayed=True)


@internal.post("/claim/{job_key_id}")
async def claim_job(job_key_id: str, caller: Caller, service: Service) -> dict[str, Any]:
    """The job that has this key. `job` is null if no job has it, and none will get it from now on."""
    return {"job": await service.claim(caller, job_key_id)}


@router.get("/jobs")
async def list_jobs(
    request: Request, caller: Caller, service: Service, after: After = None, limit: Limit = DEFAULT_LISTED
) -> dict[str, Any]:
    """The project's jobs, newest first; `metadata[key]=value` filters, `metadata=null` finds those without any."""
    metadata: dict[str, str] = {}
    without = False
    for name, value in request.query_params.multi_items():
        match = _METADATA.fullmatch(name)
        if match is not None:
            metadata[match[1]] = value
        elif name == "metadata" and value == "null":
            without = True
        elif name not in ("after", "limit"):
            raise InvalidField(f"`{name[:64]}` is not known; known are after, limit and metadata[key]", param=name[:64])
    if without and metadata:
        raise InvalidField("`metadata=null` does not go with `metadata[key]`", param="metadata")
    return await service.page(caller, after=after, limit=limit, metadata=None if without else metadata)


add_run_routes(router, "/jobs/{job_id}", jobs, "get", "cancel", "pause", "resume")


@router.get("/jobs/{job_id}/events", response_model=None)
async def list_events(
    job_id: str,
    caller: Caller,
    service: Service,
    open_streams: Annotated[Streams, Depends(streams)],
    after: After = None,
    limit: Limit = DEFAULT_LISTED,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> dict[str, Any] | StreamingResponse:
    """A job's events, newest first; or with `stream`, oldest first, as they come, until the job has ended."""
    if not stream:
        return await service.events(caller, job_id, after=after, limit=limit)
    job = await service.row(caller, job_id)
    frames = await open_streams.open(job, event_number(job, last_event_id or after))
    return StreamingResponse(frames, media_type=EVENT_STREAM, headers={"cache-control": "no-store"})


@router.get("/jobs/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: str, caller: Caller, service: Service, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """A job's checkpoints, newest first."""
    return await service.checkpoints(caller, job_id, after=after, limit=limit)


@router.get("/jobs/{job_id}/report")
async def get_report(job_id: str, caller: Caller, service: Service) -> dict[str, Any]:
    """A job's quality report."""
    report = await service.report(caller, job_id)
    return report.model_dump(mode="json") | {"refused": report.refused}


@router.post("/data_check")
async def check_data(
    request: Request,
    caller: Caller,
    data: Annotated[DataChecks, Depends(checks)],
    max_length: Annotated[int | None, Query(ge=8)] = None,
    strict: bool = False,
    drop_long: bool = False,
    overflow: Overflow | None = None,
    filename: Annotated[str, Query(max_length=256)] = "training.jsonl",
) -> dict[str, Any]:
    """The quality report of the file in the body: multipart (`file`), or its bytes alone. Nothing is kept."""
    if drop_long and overflow not in (None, "drop"):
        raise InvalidField(f"`overflow={overflow}` and `drop_long` conflict; send one", param="overflow")
    wish = CheckOptions(max_length, strict, overflow or ("drop" if drop_long else "refuse"))
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await data.check(filename, request.stream(), wish)
    try:
        form = await MultiPartParser(request.headers, read_bounded(request, data.max_bytes + FRAMING_BYTES)).parse()
    except MultiPartException as error:
        raise InvalidField(f"the form cannot be read: {error.message}") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidField("`file` is missing: the form has one part of that name, a file", param="file")
        return await data.check((file.filename or filename)[:256], _pieces(file), wish)
    finally:
        await form.close()


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(CHUNK_BYTES):
        yield piece
