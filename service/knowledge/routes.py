"""``/v1/vector_stores``: from HTTP to the stores and back, in OpenAI's form.

Changing and listing need the scope ``knowledge``; a search may also be asked with ``infer``, since an answer with that
key retrieves from the same stores.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request

from service.access.audit import Actor
from service.access.caller import Caller, Scope
from service.access.http import actor, caller, needs
from service.errors import Conflict, DiskFull, Forbidden, NotFound, TooLarge, Unavailable
from service.grounding.filters import check_filters
from service.http.body import read_json
from service.http.schema import Page, answers, takes
from service.knowledge.request_schemas import (
    MAX_BODY_BYTES,
    MAX_SEARCH_BYTES,
    AddBatch,
    AddFile,
    CreateStore,
    Search,
    SetAttributes,
    UpdateStore,
)
from service.knowledge.schemas import (
    DeletedVectorStore,
    RemovedVectorStoreFile,
    SearchResults,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileBatch,
    VectorStoreFileContent,
)
from service.knowledge.serializers import batch_object, file_object, listed, result_object, store_object
from service.knowledge.service import Knowledge
from service.knowledge.types import FileStatus

MAX_LIMIT: Final = 100
DEFAULT_LIMIT: Final = 20


async def knowledge(request: Request) -> Knowledge:
    """The service that the composition root put on the app."""
    service: Knowledge = request.app.state.knowledge
    return service


async def reader(caller: Annotated[Caller, Depends(caller)]) -> Caller:
    """The caller, who may search. Raises Forbidden."""
    if not caller.may(Scope.KNOWLEDGE) and not caller.may(Scope.INFER):
        raise Forbidden("a search needs the scope `knowledge` or `infer`; the API key has neither")
    return caller


class PageParams:
    """Which part of a list is asked for."""

    def __init__(
        self,
        after: Annotated[str | None, Query(max_length=64)] = None,
        before: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        order: Literal["asc", "desc"] = "desc",
    ) -> None:
        self.after = after
        self.before = before
        self.limit = limit
        self.newest_first = order == "desc"


router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])
CurrentCaller = Annotated[Caller, Depends(needs(Scope.KNOWLEDGE))]
CurrentReader = Annotated[Caller, Depends(reader)]
CurrentActor = Annotated[Actor, Depends(actor)]
CurrentKnowledge = Annotated[Knowledge, Depends(knowledge)]
CurrentPage = Annotated[PageParams, Depends()]


@router.post("", responses=answers(VectorStore, NotFound, Conflict, TooLarge, DiskFull))
@takes(CreateStore)
async def create_store(
    request: Request, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Make a store."""
    body = await read_json(request, CreateStore, max_bytes=MAX_BODY_BYTES)
    body.demand_lasting()
    made = await knowledge.create(
        caller,
        actor,
        name=body.name,
        description=body.description,
        metadata=body.metadata or {},
        file_ids=body.file_ids,
        chunking=body.chunking_strategy.chunking if body.chunking_strategy else None,
    )
    return store_object(made)


@router.get("", responses=answers(Page[VectorStore]))
async def list_stores(caller: CurrentCaller, knowledge: CurrentKnowledge, params: CurrentPage) -> dict[str, Any]:
    """The project's stores, as far as the key may read them."""
    stores, has_more = await knowledge.page(
        caller, after=params.after, before=params.before, limit=params.limit, newest_first=params.newest_first
    )
    return listed([store_object(store) for store in stores], has_more=has_more)


@router.get("/{store_id}", responses=answers(VectorStore, NotFound))
async def get_store(store_id: str, caller: CurrentCaller, knowledge: CurrentKnowledge) -> dict[str, Any]:
    """One store."""
    return store_object(await knowledge.show(caller, store_id))


@router.post("/{store_id}", responses=answers(VectorStore, NotFound, TooLarge, DiskFull))
@takes(UpdateStore)
async def update_store(
    store_id: str, request: Request, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Change a store's name, description or metadata."""
    body = await read_json(request, UpdateStore)
    body.demand_lasting()
    store = await knowledge.update(
        caller, actor, store_id, name=body.name, description=body.description, metadata=body.metadata
    )
    return store_object(store)


@router.delete("/{store_id}", responses=answers(DeletedVectorStore, NotFound, DiskFull))
async def delete_store(
    store_id: str, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Delete a store."""
    await knowledge.delete(caller, actor, store_id)
    return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{store_id}/search", responses=answers(SearchResults, NotFound, TooLarge, Unavailable))
@takes(Search)
async def search_store(
    store_id: str, request: Request, caller: CurrentReader, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """The passages that fit best; of several queries, each passage with its best score."""
    await knowledge.show(caller, store_id)
    body = await read_json(request, Search, max_bytes=MAX_SEARCH_BYTES)
    filters = None if body.filters is None else check_filters(body.filters, "filters")
    threshold = body.ranking_options.score_threshold if body.ranking_options else None
    best: dict[str, dict[str, Any]] = {}
    for text in body.texts:
        for passage in await knowledge.search(
            caller, store_id, text, filters=filters, k=body.max_num_results, threshold=threshold
        ):
            if passage.id not in best or best[passage.id]["score"] < passage.score:
                best[passage.id] = result_object(passage)
    data = sorted(best.values(), key=lambda result: -float(result["score"]))[: body.max_num_results]
    return {
        "object": "vector_store.search_results.page",
        "search_query": list(body.texts),
        "data": data,
        "has_more": False,
        "next_page": None,
    }


@router.post("/{store_id}/files", responses=answers(VectorStoreFile, NotFound, Conflict, TooLarge, DiskFull))
@takes(AddFile)
async def add_file(
    store_id: str, request: Request, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Put a file into a store."""
    body = await read_json(request, AddFile)
    return file_object((await knowledge.add(caller, actor, store_id, [body.draft], param="file_id"))[0])


@router.get("/{store_id}/files", responses=answers(Page[VectorStoreFile], NotFound))
async def list_files(
    store_id: str,
    caller: CurrentCaller,
    knowledge: CurrentKnowledge,
    params: CurrentPage,
    status: Annotated[FileStatus | None, Query(alias="filter")] = None,
) -> dict[str, Any]:
    """A store's files."""
    return await _files(knowledge, caller, store_id, params, status)


@router.get("/{store_id}/files/{file_id}", responses=answers(VectorStoreFile, NotFound))
async def get_file(store_id: str, file_id: str, caller: CurrentCaller, knowledge: CurrentKnowledge) -> dict[str, Any]:
    """A store's file."""
    return file_object(await knowledge.file(caller, store_id, file_id))


@router.post("/{store_id}/files/{file_id}", responses=answers(VectorStoreFile, NotFound, TooLarge, DiskFull))
@takes(SetAttributes)
async def update_file(
    store_id: str, file_id: str, request: Request, caller: CurrentCaller, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Change a file's attributes."""
    body = await read_json(request, SetAttributes)
    return file_object(await knowledge.set_attributes(caller, store_id, file_id, body.attributes or {}))


@router.delete("/{store_id}/files/{file_id}", responses=answers(RemovedVectorStoreFile, NotFound, DiskFull))
async def remove_file(
    store_id: str, file_id: str, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Take a file out of a store; it stays on the list of files."""
    await knowledge.remove(caller, actor, store_id, file_id)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.get("/{store_id}/files/{file_id}/content", responses=answers(VectorStoreFileContent, NotFound))
async def file_content(
    store_id: str, file_id: str, caller: CurrentCaller, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """The text that was read out of a file."""
    file, text = await knowledge.text(caller, store_id, file_id)
    return {
        "object": "vector_store.file_content.page",
        "file_id": file.file_id,
        "filename": file.filename,
        "attributes": dict(file.attributes),
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


@router.post(
    "/{store_id}/file_batches", responses=answers(VectorStoreFileBatch, NotFound, Conflict, TooLarge, DiskFull)
)
@takes(AddBatch)
async def create_batch(
    store_id: str, request: Request, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Put many files into a store."""
    body = await read_json(request, AddBatch, max_bytes=MAX_BODY_BYTES)
    param = "file_ids" if body.files is None else "files"
    return batch_object(await knowledge.add_batch(caller, actor, store_id, body.drafts, param=param))


@router.get("/{store_id}/file_batches/{batch_id}", responses=answers(VectorStoreFileBatch, NotFound))
async def get_batch(store_id: str, batch_id: str, caller: CurrentCaller, knowledge: CurrentKnowledge) -> dict[str, Any]:
    """How far a batch is."""
    return batch_object(await knowledge.batch(caller, store_id, batch_id))


@router.post("/{store_id}/file_batches/{batch_id}/cancel", responses=answers(VectorStoreFileBatch, NotFound, DiskFull))
async def cancel_batch(
    store_id: str, batch_id: str, caller: CurrentCaller, actor: CurrentActor, knowledge: CurrentKnowledge
) -> dict[str, Any]:
    """Cancel what is left of a batch."""
    return batch_object(await knowledge.cancel(caller, actor, store_id, batch_id))


@router.get("/{store_id}/file_batches/{batch_id}/files", responses=answers(Page[VectorStoreFile], NotFound))
async def list_batch(
    store_id: str,
    batch_id: str,
    caller: CurrentCaller,
    knowledge: CurrentKnowledge,
    params: CurrentPage,
    status: Annotated[FileStatus | None, Query(alias="filter")] = None,
) -> dict[str, Any]:
    """A batch's files."""
    await knowledge.batch(caller, store_id, batch_id)
    return await _files(knowledge, caller, store_id, params, status, batch_id)


async def _files(
    knowledge: Knowledge,
    caller: Caller,
    store_id: str,
    params: PageParams,
    status: FileStatus | None,
    batch_id: str | None = None,
) -> dict[str, Any]:
    page = await knowledge.files(
        caller,
        store_id,
        after=params.after,
        before=params.before,
        limit=params.limit,
        newest_first=params.newest_first,
        status=status,
        batch_id=batch_id,
    )
    return listed([file_object(file) for file in page.files], has_more=page.has_more)
