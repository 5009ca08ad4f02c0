"""The forwarded routes' entries in the OpenAPI document; these functions are never called.

`service.training.routes` authorises and forwards; the trainer validates queries and bodies. A test compares this with
the trainer's own routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from adapters.protocol.requests import ChoiceBody, Overflow, ReviewQueueBody, TeacherBody
from service.errors import (
    BadGateway,
    Conflict,
    DiskFull,
    HatrackError,
    NotFound,
    RateLimited,
    Timeout,
    TooLarge,
    TrainerUnavailable,
    Unprocessable,
)
from service.http.schema import ErrorResponse, Page, answers, takes
from service.training.evaluation_schemas import (
    Evaluation,
    EvaluationReport,
    NextReview,
    Review,
    ReviewQueue,
    Teacher,
    TeacherAnswer,
)
from service.training.job_schemas import DataCheck, FineTuningJob, FineTuningJobCheckpoint, FineTuningJobEvent
from service.training.ladder_schemas import Ladder, LadderEvent, LadderReport
from service.training.request_schemas import DataCheckForm, EvaluationBody, JobBody, LadderBody

EVENTS: Final = "text/event-stream"
METADATA: Final = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "description": "`metadata[key]=value`: jobs with this entry; `metadata=null`: jobs without metadata.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}


def trainers(
    model: Any, *errors: type[HatrackError], description: str = "", media_type: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a forwarded route: those of `answers`, and the errors of the forwarding itself."""
    responses = answers(
        model, *errors, BadGateway, TrainerUnavailable, Timeout, description=description, media_type=media_type
    )
    return responses | {502: {"model": ErrorResponse, "description": "`trainer_cut`, `trainer_answer`"}}


def _or_events(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Add an event stream to a list's responses."""
    schema = {"type": "string", "description": "Each event's data is a `FineTuningJobEvent`; the last one's `[DONE]`."}
    responses[200]["content"] = {EVENTS: {"schema": schema}}
    return responses


After = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=100)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        description="A retry with the same key and body returns the object created by the first request.",
    ),
]

jobs = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
evaluations = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])
ladders = APIRouter(prefix="/v1/ladders", tags=["ladders"])
reviews = APIRouter(prefix="/v1/reviews", tags=["reviews"])
teachers = APIRouter(prefix="/v1/teachers", tags=["teachers"])


@jobs.post("/jobs", responses=trainers(FineTuningJob, NotFound, Conflict, TooLarge, RateLimited, DiskFull))
@takes(JobBody)
def create_job(idempotency_key: IdempotencyKey = None) -> None:
    """Create a fine-tuning job; needs the scopes `train`, `infer` and `adapters`."""


@jobs.get("/jobs", responses=trainers(Page[FineTuningJob], NotFound), openapi_extra={"parameters": [METADATA]})
def list_jobs(after: After = None, limit: Limit = 20) -> None:
    """The project's jobs, newest first."""


@jobs.get("/jobs/{job_id}", responses=trainers(FineTuningJob, NotFound))
def get_job(job_id: str) -> None:
    """One job."""


@jobs.post("/jobs/{job_id}/cancel", responses=trainers(FineTuningJob, NotFound, TooLarge))
def cancel_job(job_id: str) -> None:
    """Cancel a job."""


@jobs.post("/jobs/{job_id}/pause", responses=trainers(FineTuningJob, NotFound, TooLarge))
def pause_job(job_id: str) -> None:
    """Pause a job and free its device."""


@jobs.post("/jobs/{job_id}/resume", responses=trainers(FineTuningJob, NotFound, TooLarge))
def resume_job(job_id: str) -> None:
    """Resume a paused job; it is queued again."""


@jobs.get("/jobs/{job_id}/events", responses=_or_events(trainers(Page[FineTuningJobEvent], NotFound)))
def list_events(
    job_id: str,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> None:
    """A job's events, newest first; with `stream`, oldest first and live until the job has ended."""


@jobs.get("/jobs/{job_id}/checkpoints", responses=trainers(Page[FineTuningJobCheckpoint], NotFound))
def list_checkpoints(job_id: str, after: After = None, limit: Limit = 10) -> None:
    """A job's checkpoints, newest first."""


@jobs.get("/jobs/{job_id}/report", responses=trainers(DataCheck, NotFound))
def get_job_report(job_id: str) -> None:
    """The quality report of a job's data."""


@jobs.post("/data_check", responses=trainers(DataCheck, TooLarge, RateLimited))
@takes(DataCheckForm, media_type="multipart/form-data")
def check_data(
    max_length: Annotated[
        int | None, Query(ge=8, description="Maximum length of an example in tokens; default: the engine's context.")
    ] = None,
    strict: Annotated[bool, Query(description="Treat warnings as errors.")] = False,
    drop_long: Annotated[bool, Query(description="The same as `overflow=drop`.")] = False,
    overflow: Annotated[
        Overflow | None, Query(description="What becomes of examples longer than `max_length`; default: `refuse`.")
    ] = None,
    filename: Annotated[
        str, Query(max_length=256, description="Name of the file if the body is not a form.")
    ] = "training.jsonl",
) -> None:
    """Check training data without storing it."""


@evaluations.post("", responses=trainers(Evaluation, NotFound, Conflict, TooLarge, RateLimited, DiskFull))
@takes(EvaluationBody)
def create_evaluation(idempotency_key: IdempotencyKey = None) -> None:
    """Create an evaluation; needs the scopes `train` and `infer`."""


@evaluations.get("", responses=trainers(Page[Evaluation], NotFound))
def list_evaluations(after: After = None, limit: Limit = 20) -> None:
    """The project's evaluations, newest first."""


@evaluations.get("/{evaluation_id}", responses=trainers(Evaluation, NotFound))
def get_evaluation(evaluation_id: str) -> None:
    """One evaluation."""


@evaluations.post("/{evaluation_id}/cancel", responses=trainers(Evaluation, NotFound, TooLarge))
def cancel_evaluation(evaluation_id: str) -> None:
    """Cancel an evaluation."""


@evaluations.get("/{evaluation_id}/report", responses=trainers(EvaluationReport, NotFound, Conflict))
def get_evaluation_report(evaluation_id: str) -> None:
    """An evaluation's report."""


@evaluations.get(
    "/{evaluation_id}/report.html",
    response_class=Response,
    responses=trainers(None, NotFound, Conflict, description="The page.", media_type="text/html"),
)
def get_report_page(evaluation_id: str) -> None:
    """An evaluation's report as a self-contained HTML page."""


@ladders.post("", responses=trainers(Ladder, NotFound, TooLarge, RateLimited, DiskFull))
@takes(LadderBody)
def create_ladder(idempotency_key: IdempotencyKey = None) -> None:
    """Create a ladder: is fine-tuning worth it? Needs the scopes `train`, `infer` and `adapters`."""


@ladders.get("", responses=trainers(Page[Ladder], NotFound))
def list_ladders(after: After = None, limit: Limit = 20) -> None:
    """The project's ladders, newest first."""


@ladders.get("/{ladder_id}", responses=trainers(Ladder, NotFound))
def get_ladder(ladder_id: str) -> None:
    """One ladder."""


@ladders.post("/{ladder_id}/cancel", responses=trainers(Ladder, NotFound, TooLarge))
def cancel_ladder(ladder_id: str) -> None:
    """Cancel a ladder and its child runs; the versions that it made stay."""


@ladders.post("/{ladder_id}/pause", responses=trainers(Ladder, NotFound, TooLarge))
def pause_ladder(ladder_id: str) -> None:
    """Pause a ladder and its child runs."""


@ladders.post("/{ladder_id}/resume", responses=trainers(Ladder, NotFound, TooLarge))
def resume_ladder(ladder_id: str) -> None:
    """Resume a paused ladder."""


@ladders.get("/{ladder_id}/events", responses=trainers(Page[LadderEvent], NotFound))
def list_ladder_events(ladder_id: str, limit: Limit = 20) -> None:
    """A ladder's last events, newest first."""


@ladders.get("/{ladder_id}/report", responses=trainers(LadderReport, NotFound, Conflict))
def get_ladder_report(ladder_id: str) -> None:
    """A ladder's report."""


@ladders.get(
    "/{ladder_id}/report.html",
    response_class=Response,
    responses=trainers(None, NotFound, Conflict, description="The page.", media_type="text/html"),
)
def get_ladder_page(ladder_id: str) -> None:
    """A ladder's report as a self-contained HTML page."""


@reviews.get("", responses=trainers(Page[ReviewQueue], NotFound))
def list_reviews(after: After = None, limit: Limit = 20) -> None:
    """The project's evaluations with pairs for human review, newest first."""


@reviews.post("", responses=trainers(ReviewQueue, NotFound, Conflict, TooLarge))
@takes(ReviewQueueBody)
def create_reviews() -> None:
    """Have people review the answers of an evaluation or a job that has ended, without a judge."""


@reviews.get("/next", responses=trainers(NextReview, NotFound))
def next_review(evaluation: After = None, after: After = None) -> None:
    """The next pair that has not been reviewed; with `after`, the next one after that pair."""


@reviews.post("/{evaluation}/end", responses=trainers(ReviewQueue, NotFound))
def end_reviews(evaluation: str) -> None:
    """Take no more choices on an evaluation's pairs; what people prefer is then shown of those made so far."""


@reviews.get("/{review_id}", responses=trainers(Review, NotFound))
def get_review(review_id: str) -> None:
    """One pair."""


@reviews.post("/{review_id}", responses=trainers(Review, NotFound, Conflict, TooLarge))
@takes(ChoiceBody)
def choose(review_id: str) -> None:
    """Choose the better answer."""


@teachers.get("", responses=trainers(Page[Teacher], NotFound))
def list_teachers() -> None:
    """The outside endpoints that the operator offers as teachers; the list has no pages."""


@teachers.post("/{name}", responses=trainers(TeacherAnswer, NotFound, Unprocessable, TooLarge, RateLimited))
@takes(TeacherBody)
def ask_teacher(name: str) -> None:
    """One answer of a teacher, as a chat completion."""


FORWARDED: Final = (*jobs.routes, *evaluations.routes, *ladders.routes, *reviews.routes, *teachers.routes)
