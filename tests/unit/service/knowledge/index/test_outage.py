"""The answer to COMMIT is lost: what is found follows the database once it answers again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import Unavailable
from tests.support.postgresql import TestServer
from tests.support.postgresql_proxy import Proxy, databases_behind_proxy
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores, SharedEmbedder


@pytest.fixture
async def proxy(postgresql: TestServer) -> AsyncIterator[Proxy]:
    async with databases_behind_proxy(postgresql) as proxy:
        yield proxy


@pytest.fixture
async def shop(proxy: Proxy, tmp_path: Path, words: SharedEmbedder) -> AsyncIterator[LocalStores]:
    async with LocalStores(tmp_path, words).open() as shop:
        yield shop


async def test_a_store_whose_deletion_is_saved_is_found_no_more(shop: LocalStores, proxy: Proxy) -> None:
    store = await shop.store()
    await shop.add(store, "a.txt", "red shoes")
    assert await shop.texts(store, "red shoes")
    proxy.lose_after = b"DELETE FROM stores"
    with pytest.raises(Unavailable):
        await shop.stores.delete_store(PROJECT, store)
    await shop.database.resync.idle()
    assert (proxy.losses, await shop.stores.get_store(PROJECT, store)) == (1, None)
    assert await shop.texts(store, "red shoes") == []
    assert list(shop.passages.glob("*.db")) == []


async def test_a_file_whose_removal_is_saved_is_found_no_more(shop: LocalStores, proxy: Proxy) -> None:
    store = await shop.store()
    for name, text in (("a.txt", "red shoes"), ("b.txt", "red hats")):
        await shop.add(store, name, text)
    assert len(await shop.texts(store, "red")) == 2
    proxy.lose_after = b"DELETE FROM store_files"
    with pytest.raises(Unavailable):
        await shop.stores.remove_file(PROJECT, store, "a.txt")
    await shop.database.resync.idle()
    assert proxy.losses == 1
    assert await shop.texts(store, "red") == ["red hats"]
