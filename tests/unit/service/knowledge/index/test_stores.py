"""The embedded stores: files come, change and go, and the next search sees it; nothing crosses a project."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import BadRequest, Conflict, HatrackError, NotFound
from service.knowledge.index import records
from service.knowledge.types import Chunking, NewStoreFile
from tests.unit.service.knowledge.index.local_stores import PROJECT, LocalStores, SharedEmbedder

RETURNS = "# Returns\n\nUnworn boots go back within 45 days.\n\n# Parcels\n\nParcels leave on Tuesdays.\n"


async def test_a_file_is_found_once_it_is_completed(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    file = await local_stores.add(store, "policy.md", RETURNS, {"lang": "en"})
    assert (file.status, file.passages, file.done, file.error) == ("completed", 2, 2, None)
    assert file.usage_bytes > 0
    first = (await local_stores.search(store, "boots back"))[0]
    assert first.text == "Returns\nUnworn boots go back within 45 days."
    assert (first.id, first.source, first.store_id, first.file_id) == ("policy.md-0", "policy.md", store, "policy.md")
    assert first.attributes == {"lang": "en"}
    info = await local_stores.stores.get_store(PROJECT, store)
    assert info is not None
    assert (info.counts.completed, info.counts.total, info.usage_bytes) == (1, 1, file.usage_bytes)


async def test_the_next_search_sees_what_was_changed(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots cost ninety")
    await local_stores.add(store, "b.txt", "parcel")
    assert await local_stores.texts(store, "boots") == ["boots cost ninety"]
    await local_stores.stores.set_attributes(PROJECT, store, "a.txt", {"old": True})
    only = {"type": "eq", "key": "old", "value": True}
    assert await local_stores.texts(store, "boots parcel", filters=only) == ["boots cost ninety"]
    await local_stores.stores.remove_file(PROJECT, store, "a.txt")
    assert await local_stores.texts(store, "boots") == []
    await local_stores.add(store, "c.txt", "boots cost eighty")
    assert await local_stores.texts(store, "boots") == ["boots cost eighty"]
    assert await local_stores.texts(store, "parcel") == ["parcel"]


async def test_a_file_that_is_added_again_keeps_its_place_until_the_new_one_is_there(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(10, 0))
    assert len(await local_stores.texts(store, "boots")) == 3
    same = await local_stores.stores.add_files(
        PROJECT, store, [NewStoreFile("a.txt", "a.txt", {"n": 1}, Chunking(10, 0))]
    )
    assert same[0][0].status == "completed", "nothing is to be done but the attributes"
    assert (await local_stores.search(store, "boots"))[0].attributes == {"n": 1}
    again = await local_stores.add(store, "a.txt", "boots " * 30, chunking=Chunking(15, 0))
    assert (again.status, again.passages) == ("completed", 2)
    assert len(await local_stores.texts(store, "boots")) == 2


async def test_what_was_indexed_is_there_after_a_restart(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.jsonl", '{"text": "boots", "metadata": {"page": 7}}')
        await local_stores.add(store, "b.txt", "parcel")
        await local_stores.stores.remove_file(PROJECT, store, "b.txt")
    async with LocalStores(tmp_path, words).open() as local_stores:
        (found,) = await local_stores.search(store, "boots", filters={"type": "eq", "key": "page", "value": 7})
        assert (found.text, found.attributes) == ("boots", {"page": 7})
        assert await local_stores.texts(store, "parcel") == []


async def test_another_projects_store_is_no_store(local_stores: LocalStores) -> None:
    await local_stores.database.run(
        lambda db: db.exec_driver_sql("INSERT INTO projects (id, created_at) VALUES ('rival', 0)")
    )
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    assert await local_stores.texts(store, "boots", project="rival") == []
    assert await local_stores.stores.get_store("rival", store) is None
    assert await local_stores.stores.list_stores("rival") == []
    assert await local_stores.stores.get_file("rival", store, "a.txt") is None
    for refused in (
        local_stores.stores.delete_store("rival", store),
        local_stores.stores.remove_file("rival", store, "a.txt"),
        local_stores.stores.file_text("rival", store, "a.txt"),
        local_stores.stores.list_files("rival", store, limit=5),
        local_stores.stores.add_files("rival", store, [NewStoreFile("b", "b.txt")]),
    ):
        with pytest.raises(NotFound) as caught:
            await refused
        assert caught.value.code == "vector_store_not_found"


async def test_several_stores_are_ranked_together(local_stores: LocalStores) -> None:
    first, second = await local_stores.store(), await local_stores.store()
    await local_stores.add(first, "a.txt", "boots")
    await local_stores.add(second, "b.txt", "boots laces")
    found = await local_stores.search([first, second, first, "vs_absent"], "boots laces")
    assert [(one.store_id, one.text) for one in found] == [(second, "boots laces"), (first, "boots")]
    assert len(await local_stores.search([first, second], "boots laces", k=1)) == 1


async def test_a_file_that_two_stores_hold_is_found_once(local_stores: LocalStores) -> None:
    first, second = await local_stores.store(), await local_stores.store()
    for store in (first, second):
        await local_stores.add(store, "a.csv", "name\nboots\nboots\nred boots\n")
    alone = sorted(await local_stores.texts(first, "boots", k=3))
    assert len(alone) == 3, "rows of one store may be alike"
    assert sorted(await local_stores.texts([first, second], "boots", k=3)) == alone
    assert len(await local_stores.texts([first, second], "boots", k=2)) == 2


async def test_a_deleted_store_is_gone_from_the_disk_too(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    assert await local_stores.texts(store, "boots") == ["boots"]
    await local_stores.stores.delete_store(PROJECT, store)
    assert await local_stores.texts(store, "boots") == []
    assert list(local_stores.passages.iterdir()) == []
    assert await local_stores.stores.contents() == []


async def test_files_that_cannot_be_read_say_why(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    unsupported = await local_stores.add(store, "a.doc", b"\xd0\xcf")
    broken = await local_stores.add(store, "a.pdf", b"no pdf")
    assert unsupported.error is not None
    assert broken.error is not None
    assert (unsupported.status, unsupported.error[0]) == ("failed", "unsupported_file")
    assert (broken.status, broken.error[0]) == ("failed", "invalid_file")
    mended = await local_stores.add(store, "a.doc.txt", "boots")
    assert mended.status == "completed"


async def test_the_text_of_a_file_is_put_together_again(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.md", RETURNS)
    expected = "Returns\n\nUnworn boots go back within 45 days.\n\nParcels\n\nParcels leave on Tuesdays."
    assert await local_stores.stores.file_text(PROJECT, store, "a.md") == expected
    words = " ".join(f"word{number}." for number in range(60))
    await local_stores.add(store, "b.txt", words, chunking=Chunking(20, 6))
    assert await local_stores.stores.file_text(PROJECT, store, "b.txt") == words


async def test_pages_of_files(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    for number in range(5):
        await local_stores.add(store, f"{number}.txt", "boots")

    async def page(**asked: object) -> tuple[list[str], bool]:
        found = await local_stores.stores.list_files(PROJECT, store, **{"limit": 2, **asked})  # type: ignore[arg-type]
        return [one.file_id[0] for one in found.files], found.has_more

    assert await page() == (["4", "3"], True)
    assert await page(after="3.txt") == (["2", "1"], True)
    assert await page(after="1.txt") == (["0"], False)
    assert await page(newest_first=False, after="0.txt") == (["1", "2"], True)
    assert await page(before="1.txt") == (["3", "2"], True)
    assert await page(before="1.txt", newest_first=False) == (["0"], False)
    assert await page(status="failed") == ([], False)
    with pytest.raises(BadRequest):
        await page(after="absent")
    with pytest.raises(NotFound):
        await page(batch_id="vsfb_absent")


async def test_a_batch_is_counted_and_cancelled(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    for number in range(40):
        local_stores.write(f"{number}.txt", "boots " * 200)
    drafts = [NewStoreFile(f"{number}.txt", f"{number}.txt") for number in range(40)]
    _, batch = await local_stores.stores.add_files(PROJECT, store, drafts, batch=True)
    assert batch is not None
    cancelled = await local_stores.stores.cancel_batch(PROJECT, store, batch.id)
    assert cancelled.cancelled
    assert cancelled.counts.cancelled + cancelled.counts.completed == 40
    assert cancelled.counts.cancelled > 0
    await local_stores.add(store, "later.txt", "parcel")
    after = await local_stores.stores.get_batch(PROJECT, store, batch.id)
    assert after is not None
    assert after.counts == cancelled.counts, "nothing of it goes on"
    await local_stores.add(store, "39.txt", "boots")
    assert await local_stores.texts(store, "boots", k=50) != []


async def test_bounds_are_kept(local_stores: LocalStores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_STORES", 1)
    monkeypatch.setattr(records, "MAX_FILES", 1)
    store = await local_stores.store()
    with pytest.raises(Conflict):
        await local_stores.store()
    with pytest.raises(Conflict):
        await local_stores.stores.add_files(PROJECT, store, [NewStoreFile("a", "a.txt"), NewStoreFile("b", "b.txt")])
    assert (await local_stores.stores.list_files(PROJECT, store, limit=5)).files == []


async def test_a_store_that_would_outgrow_the_memory_says_so(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words, memory_bytes=20_000).open() as local_stores:
        store = await local_stores.store()
        assert (await local_stores.add(store, "a.txt", "boots")).status == "completed"
        large = await local_stores.add(store, "b.csv", "n\n" + "".join(f"row {number}\n" for number in range(200)))
        assert large.error is not None
        assert "HATRACK_GROUNDING_MEMORY_MIB" in large.error[1]
        assert await local_stores.texts(store, "boots") == ["boots"]


async def test_stores_make_room_for_others_and_come_back(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words, memory_bytes=1_000).open() as local_stores:
        stores = [await local_stores.store() for _ in range(4)]
        for number, store in enumerate(stores):
            await local_stores.add(store, f"{number}.txt", f"boots {number}")
        for _ in range(2):
            for number, store in enumerate(stores):
                assert await local_stores.texts(store, "boots") == [f"boots {number}"]
        assert sum(local_stores.stores.loaded(store) for store in stores) < len(stores)


async def test_searches_go_on_while_files_come_and_go(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "always.txt", "boots always")

    async def change() -> None:
        for number in range(15):
            await local_stores.add(store, f"{number}.txt", f"boots {number}")
            await local_stores.stores.remove_file(PROJECT, store, f"{number}.txt")

    changing = asyncio.create_task(change())
    while not changing.done():
        found = await local_stores.texts(store, "boots")
        assert "boots always" in found
        assert len(found) <= 2
    await changing


async def test_a_question_may_be_empty_or_endless(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    assert await local_stores.texts(store, " \n") == []
    assert await local_stores.texts(store, "boots " * 100_000) == ["boots"]


async def test_a_deadline_that_has_passed_is_a_timeout(local_stores: LocalStores) -> None:
    store = await local_stores.store()
    await local_stores.add(store, "a.txt", "boots")
    past = asyncio.get_running_loop().time() - 1
    with pytest.raises(TimeoutError):
        await local_stores.stores.search(PROJECT, [store], "boots", filters=None, k=1, threshold=None, deadline=past)


async def test_another_model_indexes_everything_anew(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
    other = SharedEmbedder(words.config.__class__(tmp_path / "other", model="words-2", url=words.config.url))
    async with LocalStores(tmp_path, other).open() as local_stores:
        await local_stores.settled(store, "a.txt")
        assert await local_stores.texts(store, "boots") == ["boots"]
        models = await local_stores.database.run(
            lambda db: db.exec_driver_sql("SELECT model FROM store_files").scalars().all()
        )
        assert models == [other.identity]
    await other.end()


async def test_a_passage_file_that_is_damaged_is_an_error_and_no_crash(tmp_path: Path, words: SharedEmbedder) -> None:
    async with LocalStores(tmp_path, words).open() as local_stores:
        store = await local_stores.store()
        await local_stores.add(store, "a.txt", "boots")
    (tmp_path / "stores" / f"{store}.db").write_bytes(b"damaged" * 1000)
    async with LocalStores(tmp_path, words).open() as local_stores:
        with pytest.raises(HatrackError, match="cannot read or write the passages"):
            await local_stores.texts(store, "boots")
        failed = await local_stores.add(store, "c.txt", "parcel")
        assert failed.error is not None
        assert failed.error[0] == "server_error"
        other = await local_stores.store()
        await local_stores.add(other, "b.txt", "boots")
        assert await local_stores.texts(other, "boots") == ["boots"]


async def test_new_stores_hold_no_files(local_stores: LocalStores) -> None:
    assert await local_stores.stores.contents() == []
