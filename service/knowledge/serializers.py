"""Vector stores, their files and batches as the API shows them: OpenAI's objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.grounding.provider import Passage
from service.knowledge.types import BatchInfo, Chunking, FileCounts, FileInfo, StoreInfo


def store_object(store: StoreInfo) -> dict[str, Any]:
    """The store as OpenAI's `vector_store` object."""
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created_at,
        "name": store.name,
        "description": store.description,
        "usage_bytes": store.usage_bytes,
        "file_counts": counts_object(store.counts),
        "status": "in_progress" if store.counts.in_progress else "completed",
        "expires_after": None,
        "expires_at": None,
        "last_active_at": store.last_active_at,
        "metadata": dict(store.metadata),
    }


def counts_object(counts: FileCounts) -> dict[str, int]:
    """OpenAI's `file_counts`: the number of files in each state, and their total."""
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "cancelled": counts.cancelled,
        "failed": counts.failed,
        "total": counts.total,
    }


def file_object(file: FileInfo) -> dict[str, Any]:
    """The file as OpenAI's `vector_store.file` object, plus its `filename` and its indexing progress in `passages`."""
    error = {"code": file.error[0], "message": file.error[1]} if file.error else None
    return {
        "id": file.file_id,
        "object": "vector_store.file",
        "created_at": file.created_at,
        "vector_store_id": file.store_id,
        "filename": file.filename,
        "status": file.status,
        "last_error": error,
        "usage_bytes": file.usage_bytes,
        "attributes": dict(file.attributes),
        "chunking_strategy": chunking_object(file.chunking),
        "passages": {"total": file.passages, "indexed": file.done},
    }


def chunking_object(chunking: Chunking) -> dict[str, Any]:
    """The chunking as OpenAI's `static` chunking strategy."""
    static = {"max_chunk_size_tokens": chunking.size, "chunk_overlap_tokens": chunking.overlap}
    return {"type": "static", "static": static}


def batch_object(batch: BatchInfo) -> dict[str, Any]:
    """The batch as OpenAI's `vector_store.files_batch` object; `in_progress` as long as one of its files is."""
    if batch.counts.in_progress:
        status = "in_progress"
    elif batch.cancelled:
        status = "cancelled"
    else:
        status = "failed" if batch.counts.total and batch.counts.failed == batch.counts.total else "completed"
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created_at,
        "vector_store_id": batch.store_id,
        "status": status,
        "file_counts": counts_object(batch.counts),
    }


def result_object(passage: Passage) -> dict[str, Any]:
    """The passage as OpenAI's search result, plus `passage_id`, the id that citations name."""
    return {
        "file_id": passage.file_id or "",
        "filename": passage.source,
        "score": passage.score,
        "attributes": dict(passage.attributes),
        "content": [{"type": "text", "text": passage.text}],
        "passage_id": passage.id,
    }


def listed(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of objects as OpenAI's `list` object."""
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
