"""Batches as the API takes and shows them: OpenAI's, and what a batch waits for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapters.protocol.requests import Metadata
from service.batches.records import COUNTS, BatchRow, Status
from service.files.form import MAX_EXPIRY_S, MIN_EXPIRY_S
from service.http.schema import ApiModel

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
"""The routes whose requests may be in a batch. Another route of the data path needs no more than its name here."""
WINDOWS_S: Final = {"24h": 86_400}


class BatchOutputExpiry(BaseModel):
    """When the files with the results expire."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"] = Field(description="The time at which the files are created.")
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class BatchRequest(BaseModel):
    """A new batch."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="The id of a file with the purpose `batch`: JSON lines with `custom_id`, `method` (`POST`), `url` "
        "(the `endpoint`) and `body`."
    )
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: BatchOutputExpiry | None = None


class BatchError(ApiModel):
    """What is wrong with the input file, or why the batch failed."""

    code: str
    message: str
    param: str | None = Field(description="The dotted name of the invalid field of the line.")
    line: int | None = Field(description="The line of the input file, from 1.")


class BatchErrors(ApiModel):
    """All that is wrong with the input file."""

    object: Literal["list"]
    data: list[BatchError]


class BatchRequestCounts(ApiModel):
    """Requests by their result."""

    total: int
    completed: int = Field(description="Answered with 200: in the output file.")
    failed: int = Field(description="Answered otherwise, or not executed: in the error file.")


class BatchInputTokensDetails(ApiModel):
    """A breakdown of the input tokens."""

    cached_tokens: int


class BatchOutputTokensDetails(ApiModel):
    """A breakdown of the output tokens."""

    reasoning_tokens: int


class BatchUsage(ApiModel):
    """The tokens of all answers."""

    input_tokens: int
    input_tokens_details: BatchInputTokensDetails
    output_tokens: int
    output_tokens_details: BatchOutputTokensDetails
    total_tokens: int


class BatchWaiting(ApiModel):
    """Why no request of a batch is being asked."""

    code: str
    message: str
    until: int | None = Field(description="When it goes on; null: that is not known.")


class Batch(ApiModel):
    """A batch."""

    object: Literal["batch"]
    id: str
    endpoint: str
    model: str | None = Field(description="The model of all its requests; null: they differ, or it is not known yet.")
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(description="The file with the answers; null: there are none, or not yet.")
    error_file_id: str | None = Field(
        description="The file with the requests that failed or were not executed; null: there are none, or not yet."
    )
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    waiting: BatchWaiting | None = Field(description="Why none of its requests is being asked; null: they are.")


def batch_object(
    row: BatchRow, counts: dict[str, int] | None = None, waiting: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A batch as the API shows it; ``counts`` are those of this moment, by the columns of its row."""
    counts = counts or {name: getattr(row, name) for name in COUNTS}
    ended = {f"{status}_at": row.ended_at for status in ("completed", "failed", "expired", "cancelled")}
    return {
        "object": "batch",
        "id": row.id,
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": None if row.errors is None else {"object": "list", "data": row.errors},
        "input_file_id": row.input_file_id,
        "completion_window": row.completion_window,
        "status": row.status,
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": row.created_at,
        "in_progress_at": row.in_progress_at,
        "expires_at": row.expires_at,
        "finalizing_at": row.finalizing_at,
        "cancelling_at": row.cancelling_at,
        **{name: time if name == f"{row.status}_at" else None for name, time in ended.items()},
        "request_counts": {"total": row.total, "completed": counts["completed"], "failed": counts["failed"]},
        "usage": {
            "input_tokens": counts["input_tokens"],
            "input_tokens_details": {"cached_tokens": counts["cached_tokens"]},
            "output_tokens": counts["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": counts["reasoning_tokens"]},
            "total_tokens": counts["input_tokens"] + counts["output_tokens"],
        },
        "metadata": row.metadata,
        "waiting": waiting,
    }
