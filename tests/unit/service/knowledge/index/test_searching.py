"""Searches while documents come and go, and searches that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from service.grounding.provider import Passage
from service.knowledge.index import loading, searching
from service.knowledge.index.memory import Index
from service.knowledge.index.searching import load_store, search_stores
from service.knowledge.types import Chunking
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores, SharedEmbedder

HELD_S = 240.0
"""How long a thread is held where nothing lets it go on: beyond what any busy machine needs for the rest."""


async def test_a_document_that_is_replaced_during_a_search_is_found(
    local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(10, 0))
    await local_stores.texts(store, "boots")
    began, go, searches = threading.Event(), threading.Event(), 0

    def slow(found: Any, question: Any, filters: Any) -> tuple[list[Passage], bool]:
        nonlocal searches
        searches += 1
        began.set()
        go.wait(HELD_S)
        return search_stores(found, question, filters)

    monkeypatch.setattr(searching, "search_stores", slow)
    try:
        search = asyncio.create_task(local_stores.texts(store, "boots"))
        assert await asyncio.to_thread(began.wait, HELD_S / 2)
        await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(30, 0))
        async with local_stores.stores._cache.use(store) as opened:
            await local_stores.until(lambda: len(opened.file.generations()) == 1)
    finally:
        go.set()
    assert await search == [("boots " * 30).strip()]
    assert searches == 2


async def test_a_search_that_nobody_waits_for_ends_at_once(
    local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    asked: list[int] = []
    began, go = threading.Semaphore(0), threading.Event()

    def slow(found: Any, question: Any, filters: Any) -> tuple[list[Passage], bool]:
        asked.append(question.k)
        began.release()
        go.wait(HELD_S)
        return search_stores(found, question, filters)

    monkeypatch.setattr(searching, "search_stores", slow)
    try:
        running = [asyncio.create_task(local_stores.search(store, "boots")) for _ in range(searching.SEARCH_THREADS)]
        for _ in running:
            assert await asyncio.to_thread(began.acquire, timeout=HELD_S / 2)
        queued = asyncio.create_task(local_stores.search(store, "boots", k=7))
        await asyncio.sleep(0.3)
        for left in (queued, running[0]):
            left.cancel()
            done, _ = await asyncio.wait({left}, timeout=HELD_S / 4)
            assert done, "neither what waits for a thread nor what has one holds up whoever gave up"
        open_store = local_stores.stores._cache.loaded(store)
        assert open_store is not None
        assert open_store.users == 2, "what a thread reads stays open"
    finally:
        go.set()
    assert [one.text for one in await running[1]] == ["boots"]
    assert await local_stores.texts(store, "boots") == ["boots"]
    await local_stores.until(lambda: open_store.users == 0)
    assert 7 not in asked, "it was dropped before it began"


async def test_closing_waits_for_searches_that_were_left(
    tmp_path: Path, words: SharedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    ended: list[bool] = []

    def slow(found: Any, question: Any, filters: Any) -> tuple[list[Passage], bool]:
        began.set()
        go.wait(HELD_S)
        ended.append(found[0].file is not None)
        return search_stores(found, question, filters)

    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
        await local_stores.texts(store, "boots")
        monkeypatch.setattr(searching, "search_stores", slow)
        for seconds in (1, 10, 60):  # on a busy machine the time may be over before a thread has begun
            soon = asyncio.get_running_loop().time() + seconds
            with pytest.raises(TimeoutError):
                await local_stores.stores.search(
                    PROJECT, [store], "boots", filters=None, k=1, threshold=None, deadline=soon
                )
            if began.is_set():
                break
        assert not ended
        asyncio.get_running_loop().call_later(0.2, go.set)
    assert ended == [True]


async def test_a_store_loads_on_when_nobody_waits_and_once_for_all(
    local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    loop, began, go, loads = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), 0

    def slow(*args: Any) -> Index:
        nonlocal loads
        loads += 1
        loop.call_soon_threadsafe(began.set)
        go.wait(HELD_S)
        return load_store(*args)

    monkeypatch.setattr(loading, "load_store", slow)
    try:
        first = asyncio.create_task(local_stores.texts(store, "boots"))
        await began.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        soon = loop.time() + 0.05
        with pytest.raises(TimeoutError):  # at its deadline: the load waits for this test
            await local_stores.stores.search(
                PROJECT, [store], "boots", filters=None, k=1, threshold=None, deadline=soon
            )
        assert not local_stores.stores.loaded(store)
    finally:
        go.set()
    await asyncio.gather(*local_stores.stores._loader._loading.values())
    assert local_stores.stores.loaded(store), "it is kept"
    assert await local_stores.texts(store, "boots") == ["boots"]
    assert loads == 1
