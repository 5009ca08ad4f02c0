"""Vector stores, their files and batches, as the rooms' modules pass them to each other; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from service.errors import NotFound
from service.grounding.provider import NO_ATTRIBUTES, Attribute

FileStatus = Literal["in_progress", "completed", "cancelled", "failed"]
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]
MAX_STORES: Final = 1000
"""Stores that one project may have."""
MAX_FILES: Final = 10_000
"""Files that one store may have."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a document is cut, in tokens of the embedding model; the overlap is at most half of the size."""

    size: int
    overlap: int


DEFAULT_CHUNKING: Final = Chunking(200, 40)
"""Measured on Cranfield, see RETRIEVAL.md; the packaged model looks at 254 tokens."""


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Number of files of a store or of a batch in each state."""

    in_progress: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """Number of files in any state."""
        return self.in_progress + self.completed + self.cancelled + self.failed


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A vector store. ``usage_bytes`` is an estimate of the size of its passages, their vectors and its indexes."""

    id: str
    project: str
    name: str | None
    description: str | None
    metadata: Mapping[str, str]
    created_at: int
    last_active_at: int
    usage_bytes: int
    counts: FileCounts


@dataclass(frozen=True, slots=True)
class NewStoreFile:
    """A file of `/v1/files` to add to a store; its bytes are kept as long as the store has it."""

    file_id: str
    filename: str
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: NO_ATTRIBUTES)
    chunking: Chunking | None = None
    """None: the default."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a store; ``passages`` is the number of its passages, ``done`` how many of them are indexed."""

    file_id: str
    store_id: str
    filename: str
    created_at: int
    status: FileStatus
    error: tuple[ErrorCode, str] | None
    usage_bytes: int
    attributes: Mapping[str, Attribute]
    chunking: Chunking
    batch_id: str | None = None
    passages: int = 0
    done: int = 0


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """Files that were added in one request."""

    id: str
    store_id: str
    created_at: int
    cancelled: bool
    counts: FileCounts


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of a store's files, and whether more follow."""

    files: Sequence[FileInfo]
    has_more: bool


def file_not_in_store(store_id: str, file_id: str, param: str = "file_id") -> NotFound:
    """The error for a file that the store does not contain."""
    return NotFound(
        f"the vector store {store_id[:80]!r} has no file {file_id[:80]!r}",
        param=param,
        code="vector_store_file_not_found",
    )


def batch_not_found(store_id: str, batch_id: str) -> NotFound:
    """The error for a batch that the store does not have."""
    return NotFound(
        f"the vector store {store_id[:80]!r} has no file batch {batch_id[:80]!r}",
        param="batch_id",
        code="file_batch_not_found",
    )
