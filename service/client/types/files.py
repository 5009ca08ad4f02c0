"""Files, and the vector stores that index them."""

from typing import Literal, TypeAlias, TypedDict

FileStatus: TypeAlias = Literal["in_progress", "completed", "cancelled", "failed"]
Attributes: TypeAlias = dict[str, str | bool | float]
"""Metadata of a file in a vector store, for filters."""

Purpose: TypeAlias = Literal[
    "fine-tune", "evals", "fine-tune-results", "assistants", "user_data", "batch", "batch_output"
]
"""What a file is for, in OpenAI's terms."""


class FileObject(TypedDict):
    """A file."""

    object: Literal["file"]
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    status_details: None
    expires_at: int | None
    """When the file expires; None: never."""
    sha256: str
    """Hex SHA-256 of the bytes."""


class DeletedFile(TypedDict):
    """A deleted file. Its bytes stay as long as a version, vector store, job or batch needs them."""

    object: Literal["file"]
    id: str
    deleted: Literal[True]


class StoreFileCounts(TypedDict):
    """Number of files by state."""

    in_progress: int
    completed: int
    cancelled: int
    failed: int
    total: int


class VectorStore(TypedDict):
    """A vector store."""

    object: Literal["vector_store"]
    id: str
    created_at: int
    name: str | None
    description: str | None
    usage_bytes: int
    """Estimated size of passages, vectors and indexes."""
    file_counts: StoreFileCounts
    status: Literal["in_progress", "completed"]
    """`in_progress` while a file is being indexed."""
    expires_after: None
    """Stores do not expire."""
    expires_at: None
    last_active_at: int
    metadata: dict[str, str]


class DeletedVectorStore(TypedDict):
    """A deleted store; its files stay."""

    object: Literal["vector_store.deleted"]
    id: str
    deleted: Literal[True]


class VectorStoreText(TypedDict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class SearchResult(TypedDict):
    """A retrieved passage."""

    file_id: str
    filename: str
    score: float
    """0 to 1; with several queries, the best."""
    attributes: Attributes
    content: list[VectorStoreText]
    passage_id: str
    """The `id` of a citation."""


class SearchResults(TypedDict):
    """The passages that match best, best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[SearchResult]
    has_more: Literal[False]
    next_page: None


class IndexingError(TypedDict):
    """Why a file could not be indexed, or is waiting."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class StaticChunking(TypedDict):
    """Sizes in tokens of the embedding model."""

    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class ChunkingStrategy(TypedDict):
    """How a file is cut into passages; `auto` is already resolved."""

    type: Literal["static"]
    static: StaticChunking


class IndexedPassages(TypedDict):
    """Indexing progress of a file."""

    total: int
    indexed: int


class VectorStoreFile(TypedDict):
    """A file in a vector store."""

    object: Literal["vector_store.file"]
    id: str
    """The file's id, as in `/v1/files`."""
    created_at: int
    vector_store_id: str
    filename: str
    status: FileStatus
    last_error: IndexingError | None
    usage_bytes: int
    attributes: Attributes
    """What a search's `filters` match."""
    chunking_strategy: ChunkingStrategy
    passages: IndexedPassages


class RemovedVectorStoreFile(TypedDict):
    """A file that was removed from a store; the file itself stays."""

    object: Literal["vector_store.file.deleted"]
    id: str
    deleted: Literal[True]


class VectorStoreFileBatch(TypedDict):
    """Files that were added in one request."""

    object: Literal["vector_store.files_batch"]
    id: str
    created_at: int
    vector_store_id: str
    status: FileStatus
    """`failed` if every file failed."""
    file_counts: StoreFileCounts
