"""Batches: files of inference requests that are answered in the background."""

from typing import Literal, TypeAlias, TypedDict

BatchStatus: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
BatchEndpoint: TypeAlias = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]


class BatchError(TypedDict):
    """What is wrong with the input file, or why the batch failed."""

    code: str
    message: str
    param: str | None
    line: int | None
    """The line of the input file, from 1."""


class BatchErrors(TypedDict):
    """All that is wrong with the input file."""

    object: Literal["list"]
    data: list[BatchError]


class BatchRequestCounts(TypedDict):
    """Requests by their result."""

    total: int
    completed: int
    failed: int


class BatchInputTokensDetails(TypedDict):
    """A breakdown of the input tokens."""

    cached_tokens: int


class BatchOutputTokensDetails(TypedDict):
    """A breakdown of the output tokens."""

    reasoning_tokens: int


class BatchUsage(TypedDict):
    """The tokens of all answers."""

    input_tokens: int
    input_tokens_details: BatchInputTokensDetails
    output_tokens: int
    output_tokens_details: BatchOutputTokensDetails
    total_tokens: int


class BatchWaiting(TypedDict):
    """Why no request of a batch is being asked."""

    code: str
    message: str
    until: int | None
    """When it goes on, Unix seconds; None: that is not known."""


class Batch(TypedDict):
    """A batch. Times are Unix seconds."""

    object: Literal["batch"]
    id: str
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
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
    waiting: BatchWaiting | None
