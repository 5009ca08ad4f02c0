"""The embedded stores: files come, change and go, and the next search sees it; nothing crosses a project."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import BadRequest, Conflict, HatrackError, NotFound
from service.knowledge.index import records
from service.knowledge.types import Chunking, NewStoreFile
from tests.unit.service.knowledge.index.rig import PROJECT, Rig, SharedEmbedder

RETURNS = "# Returns\n\nUnworn boots go back within 45 days.\n\n# Parcels\n\nParcels leave on Tuesdays.\n"


async def test_a_file_is_found_once_it_is_completed(rig: Rig) -> None:
    store = await rig.store()
    file = await rig.add(store, "policy.md", RETURNS, {"lang": "en"})
    assert (file.status, file.passages, file.done, file.error) == ("completed", 2, 2, None)
    assert file.usage_bytes > 0
    first = (await rig.search(store, "boots back"))[0]
    assert first.text == "Returns\nUnworn boots go back within 45 days."
    assert (first.id, first.source, first.store_id, first.file_id) == ("policy.md-0", "policy.md", store, "policy.md")
    assert first.attributes == {"lang": "en"}
    info = await rig.stores.get_store(PROJECT, store)
    assert info is not None
    assert (info.counts.completed, info.counts.total, info.usage_bytes) == (1, 1, file.usage_bytes)


async def test_the_next_search_sees_what_was_changed(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.txt", "boots cost ninety")
    await rig.add(store, "b.txt", "parcel")
    assert await rig.texts(store, "boots") == ["boots cost ninety"]
    await rig.stores.set_attributes(PROJECT, store, "a.txt", {"old": True})
    only = {"type": "eq", "key": "old", "value": True}
    assert await rig.texts(store, "boots parcel", filters=only) == ["boots cost ninety"]
    await rig.stores.remove_file(PROJECT, store, "a.txt")
    assert await rig.texts(store, "boots") == []
    await rig.add(store, "c.txt", "boots cost eighty")
    assert await rig.texts(store, "boots") == ["boots cost eighty"]
    assert await rig.texts(store, "parcel") == ["parcel"]


async def test_a_file_that_is_added_again_keeps_its_place_until_the_new_one_is_there(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.txt", "boots " * 30, chunking=Chunking(10, 0))
    assert len(await rig.texts(store, "boots")) == 3
    same = await rig.stores.add_files(PROJECT, store, [NewStoreFile("a.txt", "a.txt", {"n": 1}, Chunking(10, 0))])
    assert same[0][0].status == "completed", "nothing is to be done but the attributes"
    assert (await rig.search(store, "boots"))[0].attributes == {"n": 1}
    again = await rig.add(store, "a.txt", "boots " * 30, chunking=Chunking(15, 0))
    assert (again.status, again.passages) == ("completed", 2)
    assert len(await rig.texts(store, "boots")) == 2


async def test_what_was_indexed_is_there_after_a_restart(tmp_path: Path, words: SharedEmbedder) -> None:
    async with Rig(tmp_path, words).open() as rig:
        store = await rig.store()
        await rig.add(store, "a.jsonl", '{"text": "boots", "metadata": {"page": 7}}')
        await rig.add(store, "b.txt", "parcel")
        await rig.stores.remove_file(PROJECT, store, "b.txt")
    async with Rig(tmp_path, words).open() as rig:
        (found,) = await rig.search(store, "boots", filters={"type": "eq", "key": "page", "value": 7})
        assert (found.text, found.attributes) == ("boots", {"page": 7})
        assert await rig.texts(store, "parcel") == []


async def test_another_projects_store_is_no_store(rig: Rig) -> None:
    await rig.database.run(lambda db: db.exec_driver_sql("INSERT INTO projects (id, created_at) VALUES ('rival', 0)"))
    store = await rig.store()
    await rig.add(store, "a.txt", "boots")
    assert await rig.texts(store, "boots", project="rival") == []
    assert await rig.stores.get_store("rival", store) is None
    assert await rig.stores.list_stores("rival") == []
    assert await rig.stores.get_file("rival", store, "a.txt") is None
    for refused in (
        rig.stores.delete_store("rival", store),
        rig.stores.remove_file("rival", store, "a.txt"),
        rig.stores.file_text("rival", store, "a.txt"),
        rig.stores.list_files("rival", store, limit=5),
        rig.stores.add_files("rival", store, [NewStoreFile("b", "b.txt")]),
    ):
        with pytest.raises(NotFound) as caught:
            await refused
        assert caught.value.code == "vector_store_not_found"


async def test_several_stores_are_ranked_together(rig: Rig) -> None:
    first, second = await rig.store(), await rig.store()
    await rig.add(first, "a.txt", "boots")
    await rig.add(second, "b.txt", "boots laces")
    found = await rig.search([first, second, first, "vs_absent"], "boots laces")
    assert [(one.store_id, one.text) for one in found] == [(second, "boots laces"), (first, "boots")]
    assert len(await rig.search([first, second], "boots laces", k=1)) == 1


async def test_a_file_that_two_stores_hold_is_found_once(rig: Rig) -> None:
    first, second = await rig.store(), await rig.store()
    for store in (first, second):
        await rig.add(store, "a.csv", "name\nboots\nboots\nred boots\n")
    alone = sorted(await rig.texts(first, "boots", k=3))
    assert len(alone) == 3, "rows of one store may be alike"
    assert sorted(await rig.texts([first, second], "boots", k=3)) == alone
    assert len(await rig.texts([first, second], "boots", k=2)) == 2


async def test_a_deleted_store_is_gone_from_the_disk_too(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.txt", "boots")
    assert await rig.texts(store, "boots") == ["boots"]
    await rig.stores.delete_store(PROJECT, store)
    assert await rig.texts(store, "boots") == []
    assert list(rig.passages.iterdir()) == []
    assert await rig.stores.contents() == []


async def test_files_that_cannot_be_read_say_why(rig: Rig) -> None:
    store = await rig.store()
    unsupported = await rig.add(store, "a.docx", b"PK")
    broken = await rig.add(store, "a.pdf", b"no pdf")
    assert unsupported.error is not None
    assert broken.error is not None
    assert (unsupported.status, unsupported.error[0]) == ("failed", "unsupported_file")
    assert (broken.status, broken.error[0]) == ("failed", "invalid_file")
    mended = await rig.add(store, "a.docx.txt", "boots")
    assert mended.status == "completed"


async def test_the_text_of_a_file_is_put_together_again(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.md", RETURNS)
    expected = "Returns\n\nUnworn boots go back within 45 days.\n\nParcels\n\nParcels leave on Tuesdays."
    assert await rig.stores.file_text(PROJECT, store, "a.md") == expected
    words = " ".join(f"word{number}." for number in range(60))
    await rig.add(store, "b.txt", words, chunking=Chunking(20, 6))
    assert await rig.stores.file_text(PROJECT, store, "b.txt") == words


async def test_pages_of_files(rig: Rig) -> None:
    store = await rig.store()
    for number in range(5):
        await rig.add(store, f"{number}.txt", "boots")

    async def page(**asked: object) -> tuple[list[str], bool]:
        found = await rig.stores.list_files(PROJECT, store, **{"limit": 2, **asked})  # type: ignore[arg-type]
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


async def test_a_batch_is_counted_and_cancelled(rig: Rig) -> None:
    store = await rig.store()
    for number in range(40):
        rig.write(f"{number}.txt", "boots " * 200)
    drafts = [NewStoreFile(f"{number}.txt", f"{number}.txt") for number in range(40)]
    _, batch = await rig.stores.add_files(PROJECT, store, drafts, batch=True)
    assert batch is not None
    cancelled = await rig.stores.cancel_batch(PROJECT, store, batch.id)
    assert cancelled.cancelled
    assert cancelled.counts.cancelled + cancelled.counts.completed == 40
    assert cancelled.counts.cancelled > 0
    await rig.add(store, "later.txt", "parcel")
    after = await rig.stores.get_batch(PROJECT, store, batch.id)
    assert after is not None
    assert after.counts == cancelled.counts, "nothing of it goes on"
    await rig.add(store, "39.txt", "boots")
    assert await rig.texts(store, "boots", k=50) != []


async def test_bounds_are_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_STORES", 1)
    monkeypatch.setattr(records, "MAX_FILES", 1)
    store = await rig.store()
    with pytest.raises(Conflict):
        await rig.store()
    with pytest.raises(Conflict):
        await rig.stores.add_files(PROJECT, store, [NewStoreFile("a", "a.txt"), NewStoreFile("b", "b.txt")])
    assert (await rig.stores.list_files(PROJECT, store, limit=5)).files == []


async def test_a_store_that_would_outgrow_the_memory_says_so(tmp_path: Path, words: SharedEmbedder) -> None:
    async with Rig(tmp_path, words, memory_bytes=20_000).open() as rig:
        store = await rig.store()
        assert (await rig.add(store, "a.txt", "boots")).status == "completed"
        large = await rig.add(store, "b.csv", "n\n" + "".join(f"row {number}\n" for number in range(200)))
        assert large.error is not None
        assert "HATRACK_GROUNDING_MEMORY_MIB" in large.error[1]
        assert await rig.texts(store, "boots") == ["boots"]


async def test_stores_make_room_for_others_and_come_back(tmp_path: Path, words: SharedEmbedder) -> None:
    async with Rig(tmp_path, words, memory_bytes=1_000).open() as rig:
        stores = [await rig.store() for _ in range(4)]
        for number, store in enumerate(stores):
            await rig.add(store, f"{number}.txt", f"boots {number}")
        for _ in range(2):
            for number, store in enumerate(stores):
                assert await rig.texts(store, "boots") == [f"boots {number}"]
        assert sum(rig.stores.loaded(store) for store in stores) < len(stores)


async def test_searches_go_on_while_files_come_and_go(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "always.txt", "boots always")

    async def change() -> None:
        for number in range(15):
            await rig.add(store, f"{number}.txt", f"boots {number}")
            await rig.stores.remove_file(PROJECT, store, f"{number}.txt")

    changing = asyncio.create_task(change())
    while not changing.done():
        found = await rig.texts(store, "boots")
        assert "boots always" in found
        assert len(found) <= 2
    await changing


async def test_a_question_may_be_empty_or_endless(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.txt", "boots")
    assert await rig.texts(store, " \n") == []
    assert await rig.texts(store, "boots " * 100_000) == ["boots"]


async def test_a_deadline_that_has_passed_is_a_timeout(rig: Rig) -> None:
    store = await rig.store()
    await rig.add(store, "a.txt", "boots")
    past = asyncio.get_running_loop().time() - 1
    with pytest.raises(TimeoutError):
        await rig.stores.search(PROJECT, [store], "boots", filters=None, k=1, threshold=None, deadline=past)


async def test_another_model_indexes_everything_anew(tmp_path: Path, words: SharedEmbedder) -> None:
    async with Rig(tmp_path, words).open() as rig:
        store = await rig.store()
        await rig.add(store, "a.txt", "boots")
    other = SharedEmbedder(words.config.__class__(tmp_path / "other", model="words-2", url=words.config.url))
    async with Rig(tmp_path, other).open() as rig:
        await rig.settled(store, "a.txt")
        assert await rig.texts(store, "boots") == ["boots"]
        models = await rig.database.run(lambda db: db.exec_driver_sql("SELECT model FROM store_files").scalars().all())
        assert models == [other.identity]
    await other.end()


async def test_a_passage_file_that_is_damaged_is_an_error_and_no_crash(tmp_path: Path, words: SharedEmbedder) -> None:
    async with Rig(tmp_path, words).open() as rig:
        store = await rig.store()
        await rig.add(store, "a.txt", "boots")
    (tmp_path / "stores" / f"{store}.db").write_bytes(b"damaged" * 1000)
    async with Rig(tmp_path, words).open() as rig:
        with pytest.raises(HatrackError, match="cannot read or write the passages"):
            await rig.texts(store, "boots")
        failed = await rig.add(store, "c.txt", "parcel")
        assert failed.error is not None
        assert failed.error[0] == "server_error"
        other = await rig.store()
        await rig.add(other, "b.txt", "boots")
        assert await rig.texts(other, "boots") == ["boots"]


async def test_new_stores_hold_no_files(rig: Rig) -> None:
    assert await rig.stores.contents() == []
