"""Search over several open stores, and loading of a store's index into memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from threadpoolctl import threadpool_limits

from service.grounding.provider import Filters, Passage
from service.knowledge.index.indexing_records import SearchableFile
from service.knowledge.index.memory import Document, Index, load
from service.knowledge.index.passage_records import PassageFile
from service.knowledge.index.ranking import Hit, Question
from service.knowledge.text import PassageText

SEARCH_THREADS: Final = 2


@dataclass(frozen=True, slots=True)
class OpenStore:
    """An open store: its index, and the file with the passages' text."""

    store_id: str
    file: PassageFile
    index: Index


class SearchPool:
    """The thread pool for searches."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SEARCH_THREADS, "knowledge-search", use_one_blas_thread)
        self._left: set[asyncio.Task[None]] = set()

    async def search(
        self, contexts: AsyncExitStack, stores: Sequence[OpenStore], question: Question, filters: Filters | None
    ) -> tuple[list[Passage], bool]:
        """Run ``search`` in the pool's threads. If the caller is cancelled, a search that is still queued is dropped.

        Args:
            contexts: Keeps the stores open. If the caller is cancelled while the search runs, it is closed afterwards.
        """
        future = self._threads.submit(search_stores, stores, question, filters)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():
                left = asyncio.create_task(_hold_open(contexts.pop_all(), future), name="knowledge-search-left")
                self._left.add(left)
                left.add_done_callback(self._left.discard)
            raise

    async def close(self) -> None:
        """Wait for running searches, and end the threads."""
        await asyncio.gather(*self._left)
        self._threads.shutdown(wait=True)


def use_one_blas_thread() -> None:
    """Limit BLAS to the calling thread: on a busy machine, a product split over two cores waits for the slower one."""
    threadpool_limits(1, user_api="blas")


async def _hold_open(contexts: AsyncExitStack, future: Future[tuple[list[Passage], bool]]) -> None:
    async with contexts:
        await asyncio.gather(asyncio.wrap_future(future), return_exceptions=True)


def load_store(file: PassageFile, files: Sequence[SearchableFile], writing: set[str]) -> Index:
    """Load a store's index, and delete documents that nothing refers to. Blocks."""
    by_generation = {searchable.generation: searchable for searchable in files}
    file.delete(file.generations() - set(by_generation) - writing)
    loaded = file.load(set(by_generation))
    documents = {}
    for generation, number in loaded.numbers.items():
        searchable = by_generation[generation]
        documents[number] = Document(
            searchable.file_id, searchable.filename, generation, searchable.attributes, loaded.own.get(number, {})
        )
    return load(documents, loaded.segments)


def search_stores(
    stores: Sequence[OpenStore], question: Question, filters: Filters | None
) -> tuple[list[Passage], bool]:
    """The best passages of several stores together, without duplicates (stores may share a file). Blocks.

    The second value is False if the text of a passage is missing, because its document was replaced or removed since
    the index was read.
    """
    hits = [(store, hit) for store in stores for hit in store.index.search(question, filters)]
    hits.sort(key=lambda pair: -pair[1].score)
    best = hits if len(stores) > 1 else hits[: question.k]
    passages: dict[int, Passage] = {}
    for store in stores:
        own_hits = [(index, hit) for index, (owner, hit) in enumerate(best) if owner is store]
        texts = store.file.texts([hit.place for _, hit in own_hits])
        for (index, hit), text in zip(own_hits, texts, strict=True):
            if text is not None:
                passages[index] = _passage(store, hit, text)
    owners: dict[tuple[str | None, str], str] = {}
    ordered = [passages[index] for index in sorted(passages)]
    once = [
        store for store in ordered if owners.setdefault((store.file_id, store.text), store.store_id) == store.store_id
    ]
    return once[: question.k], len(passages) == len(best)


def _passage(store: OpenStore, hit: Hit, text: PassageText) -> Passage:
    document = store.index.documents[int(hit.part.documents[hit.row])]
    return Passage(
        id=f"{document.file_id}-{text.number}",
        text=text.whole,
        score=round(hit.score, 6),
        source=document.filename,
        store_id=store.store_id,
        file_id=document.file_id,
        attributes=store.index.attributes(hit),
        turns=text.turns,
    )


def join_passages(passages: Sequence[PassageText]) -> str:
    """Reassemble a document's text from its passages: each heading path once, without overlaps."""
    parts: list[str] = []
    heading = ""
    for passage in passages:
        if passage.heading != heading:
            heading = passage.heading
            parts.append(f"\n\n{heading}\n\n" if heading else "\n\n")
        elif parts:
            parts.append(" " if passage.repeats else "\n\n")
        parts.append(passage.text[passage.repeats :].lstrip())
    return "".join(parts).strip()
