"""One search over several open stores, and how a store comes into memory."""

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
    """A store that is searched: its index and the file with the text."""

    store_id: str
    file: PassageFile
    index: Index


class SearchPool:
    """The threads that searches run on."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SEARCH_THREADS, "knowledge-search", use_one_blas_thread)
        self._left: set[asyncio.Task[None]] = set()

    async def search(
        self, contexts: AsyncExitStack, stores: Sequence[OpenStore], question: Question, filters: Filters | None
    ) -> tuple[list[Passage], bool]:
        """As ``search``, off the loop. Whoever gives up does not wait for a thread: what is still queued is dropped.

        Args:
            contexts: Holds open what is read; taken over where nobody waits any more and the search still runs.
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
        """Wait for what runs, and end the threads."""
        await asyncio.gather(*self._left)
        self._threads.shutdown(wait=True)


def use_one_blas_thread() -> None:
    """Have numpy multiply on the thread that asks: a product on two of a busy machine's cores waits for the slower."""
    threadpool_limits(1, user_api="blas")


async def _hold_open(contexts: AsyncExitStack, future: Future[tuple[list[Passage], bool]]) -> None:
    async with contexts:
        await asyncio.gather(asyncio.wrap_future(future), return_exceptions=True)


def load_store(file: PassageFile, files: Sequence[SearchableFile], writing: set[str]) -> Index:
    """A store's index, and away with the documents that nothing refers to. Blocks."""
    by_generation = {one.generation: one for one in files}
    file.delete(file.generations() - set(by_generation) - writing)
    loaded = file.load(set(by_generation))
    documents = {}
    for generation, number in loaded.numbers.items():
        one = by_generation[generation]
        documents[number] = Document(one.file_id, one.filename, generation, one.attributes, loaded.own.get(number, {}))
    return load(documents, loaded.segments)


def search_stores(
    stores: Sequence[OpenStore], question: Question, filters: Filters | None
) -> tuple[list[Passage], bool]:
    """The best passages of several stores together, each once: several may hold the same file. Blocks.

    Also says whether the text of each was there: else a document was replaced or taken out since the index was read.
    """
    hits = [(one, hit) for one in stores for hit in one.index.search(question, filters)]
    hits.sort(key=lambda pair: -pair[1].score)
    best = hits if len(stores) > 1 else hits[: question.k]
    passages: dict[int, Passage] = {}
    for one in stores:
        own_hits = [(index, hit) for index, (owner, hit) in enumerate(best) if owner is one]
        texts = one.file.texts([hit.place for _, hit in own_hits])
        for (index, hit), text in zip(own_hits, texts, strict=True):
            if text is not None:
                passages[index] = _passage(one, hit, text)
    owners: dict[tuple[str | None, str], str] = {}
    ordered = [passages[index] for index in sorted(passages)]
    once = [one for one in ordered if owners.setdefault((one.file_id, one.text), one.store_id) == one.store_id]
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
    )


def join_passages(passages: Sequence[PassageText]) -> str:
    """A document's text, put together again: each heading path once, and nothing twice."""
    parts: list[str] = []
    heading = ""
    for one in passages:
        if one.heading != heading:
            heading = one.heading
            parts.append(f"\n\n{heading}\n\n" if heading else "\n\n")
        elif parts:
            parts.append(" " if one.repeats else "\n\n")
        parts.append(one.text[one.repeats :].lstrip())
    return "".join(parts).strip()
