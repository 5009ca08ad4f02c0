"""Vector stores, their files and their batches as the API shows them: OpenAI's objects."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.http.schema import ApiModel
from service.knowledge.types import ErrorCode, FileStatus


class StoreFileCounts(ApiModel):
    """Number of files in each state."""

    in_progress: int
    completed: int
    cancelled: int
    failed: int
    total: int


class VectorStore(ApiModel):
    """A vector store."""

    object: Literal["vector_store"]
    id: str
    created_at: int
    name: str | None
    description: str | None
    usage_bytes: int = Field(description="Estimated size of its passages, vectors and indexes.")
    file_counts: StoreFileCounts
    status: Literal["in_progress", "completed"] = Field(description="`in_progress` while a file is being indexed.")
    expires_after: None = Field(description="Always null: stores do not expire.")
    expires_at: None
    last_active_at: int
    metadata: dict[str, str]


class DeletedVectorStore(ApiModel):
    """A deleted store; its files stay on the list of files."""

    object: Literal["vector_store.deleted"]
    id: str
    deleted: Literal[True]


class StaticChunking(ApiModel):
    """Sizes in tokens of the embedding model."""

    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class ChunkingStrategy(ApiModel):
    """How a file is cut into passages; what `auto` came to."""

    type: Literal["static"]
    static: StaticChunking


class IndexingError(ApiModel):
    """Why a file could not be indexed, or why it waits."""

    code: ErrorCode
    message: str


class IndexedPassages(ApiModel):
    """Indexing progress of a file."""

    total: int
    indexed: int


class VectorStoreFile(ApiModel):
    """A file in a vector store."""

    object: Literal["vector_store.file"]
    id: str = Field(description="The file's id in `/v1/files`.")
    created_at: int
    vector_store_id: str
    filename: str
    status: FileStatus
    last_error: IndexingError | None
    usage_bytes: int
    attributes: dict[str, str | bool | float] = Field(description="Attributes that a search's `filters` compare.")
    chunking_strategy: ChunkingStrategy
    passages: IndexedPassages


class RemovedVectorStoreFile(ApiModel):
    """A file that was taken out of a store; it stays on the list of files."""

    object: Literal["vector_store.file.deleted"]
    id: str
    deleted: Literal[True]


class VectorStoreText(ApiModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class VectorStoreFileContent(ApiModel):
    """The text that was read out of a file."""

    object: Literal["vector_store.file_content.page"]
    file_id: str
    filename: str
    attributes: dict[str, str | bool | float]
    data: list[VectorStoreText]
    has_more: Literal[False]
    next_page: None


class VectorStoreFileBatch(ApiModel):
    """Files that were added in one request."""

    object: Literal["vector_store.files_batch"]
    id: str
    created_at: int
    vector_store_id: str
    status: FileStatus = Field(description="`failed` if every file failed.")
    file_counts: StoreFileCounts


class SearchResult(ApiModel):
    """A retrieved passage."""

    file_id: str
    filename: str
    score: float = Field(description="0 to 1; with several queries, the best score.")
    attributes: dict[str, str | bool | float]
    content: list[VectorStoreText]
    passage_id: str = Field(description="The id that citations in a grounded answer use.")


class SearchResults(ApiModel):
    """The passages that fit best, best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[SearchResult]
    has_more: Literal[False]
    next_page: None
