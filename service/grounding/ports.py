"""What the routes and the hook need of the embedded stores; `service.grounding.embedded.stores.Stores` is the real one.

Everything belongs to a project: a store of another project answers exactly as one that does not exist. Who may read
which store inside a project is decided by the callers of this port, not behind it. Every method may be called on the
event loop and must not block it; times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from service.errors import NotFound
from service.grounding.provider import NO_ATTRIBUTES, Attribute, Filters, Passage

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


@dataclass(frozen=True, slots=True)
class FileCounts:
    """How many files of a store (or of a batch) are in which state."""

    in_progress: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_progress + self.completed + self.cancelled + self.failed


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """One store. ``usage_bytes`` is what its passages, their vectors and its indexes take (an estimate will do)."""

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
class FileDraft:
    """A file of `/v1/files` that goes into a store; its bytes stay where they are as long as the store has it."""

    file_id: str
    filename: str
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: NO_ATTRIBUTES)
    chunking: Chunking | None = None
    """None: the default."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a store; ``passages`` and ``done`` count its passages and those that are indexed by now."""

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


class Stores(Protocol):
    """The embedded stores of all projects.

    Constructed with a ``path_of: Callable[[str], Path]`` that says where the bytes of a file id are.
    """

    async def open(self) -> None:
        """Open the database, take up what a crash left half indexed."""

    async def close(self) -> None:
        """Stop indexing, durably."""

    # stores

    async def create_store(
        self, project: str, name: str | None, *, description: str | None = None, metadata: Mapping[str, str]
    ) -> StoreInfo:
        """A new, empty store; its id begins with ``vs_`` and holds lower-case letters, digits and ``_`` alone.

        Raises:
            Conflict: The project has MAX_STORES of them.
        """

    async def get_store(self, project: str, store_id: str) -> StoreInfo | None:
        """One store, or None; quick, for the data path asks it."""

    async def list_stores(self, project: str) -> Sequence[StoreInfo]:
        """All stores of a project, oldest first."""

    async def update_store(
        self, project: str, store_id: str, *, name: str | None, metadata: Mapping[str, str]
    ) -> StoreInfo:
        """Give it this name and these metadata.

        Raises:
            NotFound: There is no such store.
        """

    async def delete_store(self, project: str, store_id: str) -> None:
        """Delete it with all that it holds; the next search does not find it.

        Raises:
            NotFound: There is no such store.
        """

    # files

    async def add_files(
        self, project: str, store_id: str, drafts: Sequence[FileDraft], *, batch: bool = False
    ) -> tuple[Sequence[FileInfo], BatchInfo | None]:
        """Take files in, all or none; they are indexed in the background, in this order, and found once `completed`.

        A file that the store already has gets the draft's attributes, and is indexed anew where its chunking differs or
        it had failed or was cancelled; while that goes on, what was indexed before is still found.

        Args:
            batch: Make them a batch (id ``vsfb_…``) that can be asked after and cancelled as one.

        Raises:
            NotFound: There is no such store.
            Conflict: The store would have more than MAX_FILES.
        """

    async def get_file(self, project: str, store_id: str, file_id: str) -> FileInfo | None:
        """One file of a store, or None where there is no such store or file."""

    async def list_files(
        self,
        project: str,
        store_id: str,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int,
        newest_first: bool = True,
        status: FileStatus | None = None,
        batch_id: str | None = None,
    ) -> FilePage:
        """A page of a store's files, between two file ids where they are given.

        Raises:
            NotFound: There is no such store, or batch in it.
            BadRequest: ``after`` or ``before`` names none of its files.
        """

    async def set_attributes(
        self, project: str, store_id: str, file_id: str, attributes: Mapping[str, Attribute]
    ) -> FileInfo:
        """Replace a file's metadata; the next search sees them.

        Raises:
            NotFound: There is no such store, or file in it.
        """

    async def remove_file(self, project: str, store_id: str, file_id: str) -> None:
        """Take a file out of a store; the next search does not find it.

        Raises:
            NotFound: There is no such store, or file in it.
        """

    async def file_text(self, project: str, store_id: str, file_id: str) -> str:
        """The text that was read out of a file; empty where it is not read yet.

        Raises:
            NotFound: There is no such store, or file in it.
        """

    async def get_batch(self, project: str, store_id: str, batch_id: str) -> BatchInfo | None:
        """A batch, or None."""

    async def cancel_batch(self, project: str, store_id: str, batch_id: str) -> BatchInfo:
        """Cancel those of its files that are still in progress.

        Raises:
            NotFound: There is no such store, or batch in it.
        """

    async def contents(self) -> Sequence[tuple[str, str]]:
        """The (store id, file id) of every file in every store: whose bytes must be kept."""

    # search

    async def search(
        self,
        project: str,
        store_ids: Sequence[str],
        text: str,
        *,
        filters: Filters | None,
        k: int,
        threshold: float | None,
        deadline: float,
    ) -> Sequence[Passage]:
        """The best passages of these stores together, best first, at most ``k``.

        A passage's ``source`` is its file's name. A store that went away meanwhile has no passages. ``filters`` were
        checked with ``service.grounding.embedded.filters.check_filters(value, path)``, which raises BadRequest with
        ``path`` in ``param``.

        Args:
            threshold: Of the fused score, 0 to 1.
            deadline: On the event loop's clock, seconds.

        Raises:
            TimeoutError: The deadline passed.
            HatrackError: The embedder or the database cannot be used now.
        """


def store_not_found(store_id: str, param: str = "vector_store_id") -> NotFound:
    """The answer for a store that does not exist, and for one that the key may not read."""
    return NotFound(f"there is no vector store {store_id[:80]!r}", param=param, code="vector_store_not_found")


def file_not_in_store(store_id: str, file_id: str, param: str = "file_id") -> NotFound:
    """The answer for a file that a store does not hold."""
    return NotFound(
        f"the vector store {store_id[:80]!r} holds no file {file_id[:80]!r}",
        param=param,
        code="vector_store_file_not_found",
    )


def batch_not_found(store_id: str, batch_id: str) -> NotFound:
    """The answer for a batch that a store does not know."""
    return NotFound(
        f"the vector store {store_id[:80]!r} has no file batch {batch_id[:80]!r}",
        param="batch_id",
        code="file_batch_not_found",
    )
