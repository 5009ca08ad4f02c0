"""`/v1/vector_stores` through the official client, over the real stores."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest

from service.errors import DiskFull
from service.files.service import Files
from service.knowledge import service
from service.knowledge.file_holds import place_holds, release_holds
from service.knowledge.index import records
from service.knowledge.index.cache import IndexCache
from tests.unit.service.knowledge.knowledge_app import KnowledgeApp, detail, vectors

RETURNS = "# Returns\n\nUnworn goods may be sent back within 45 days.\n"
DELIVERY = "# Delivery\n\nExpress delivery takes one working day.\n"


async def test_a_store_from_its_making_to_its_end(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    store = await client.vector_stores.create(name="policies", metadata={"team": "shop"}, description="rules")
    assert (store.object, store.status, store.file_counts.total) == ("vector_store", "completed", 0)
    file = await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("returns.md", RETURNS.encode()), poll_interval_ms=50
    )
    assert (file.status, file.last_error, file.vector_store_id) == ("completed", None, store.id)
    assert file.usage_bytes > 0
    store = await client.vector_stores.retrieve(store.id)
    assert (store.file_counts.completed, store.usage_bytes > 0) == (1, True)
    found = (await client.vector_stores.search(store.id, query="How many days to send goods back?")).data
    assert found[0].filename == "returns.md"
    assert "45 days" in found[0].content[0].text
    assert found[0].file_id == file.id
    content = (await client.vector_stores.files.content(file.id, vector_store_id=store.id)).data
    assert "45 days" in (content[0].text or "")
    store = await client.vector_stores.update(store.id, name="rules")
    assert (store.name, store.metadata, store.description) == ("rules", {"team": "shop"}, "rules")
    store = await client.vector_stores.update(store.id, extra_body={"description": "of the shop"})
    assert (store.name, store.metadata, store.description) == ("rules", {"team": "shop"}, "of the shop")
    removed = await client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    assert (removed.deleted, removed.object) == (True, "vector_store.file.deleted")
    assert (await client.vector_stores.search(store.id, query="days")).data == []
    deleted = await client.vector_stores.delete(store.id)
    assert (deleted.deleted, deleted.object) == (True, "vector_store.deleted")
    with pytest.raises(openai.NotFoundError) as caught:
        await client.vector_stores.retrieve(store.id)
    assert detail(caught.value) == (404, "vector_store_not_found", "vector_store_id")
    assert "by their id" not in caught.value.message
    with pytest.raises(openai.NotFoundError, match=r"by their id \(`vs_…`\), which the list of stores has"):
        await client.vector_stores.retrieve("rules")
    page = await knowledge_app.http.get("/v1/audit", params={"limit": 20})
    actions = [entry["action"] for entry in page.json()["data"] if entry["action"].startswith("store.")]
    assert actions == ["store.delete", "store.remove", "store.update", "store.update", "store.add", "store.create"]


async def test_files_in_batches_with_attributes_and_filters(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    ids = [await knowledge_app.text("returns.md", RETURNS), await knowledge_app.text("delivery.md", DELIVERY)]
    store = await client.vector_stores.create(name="policies", file_ids=[ids[0]])
    batch = await client.vector_stores.file_batches.create_and_poll(
        store.id,
        files=[
            {"file_id": ids[0], "attributes": {"region": "eu", "year": 2025}},
            {"file_id": ids[1], "attributes": {"region": "us", "express": True}},
        ],
        poll_interval_ms=50,
    )
    assert (batch.status, batch.file_counts.completed, batch.object) == ("completed", 2, "vector_store.files_batch")
    listed = await client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {file.id for file in listed.data} == set(ids)
    only: dict[str, object] = {"type": "eq", "key": "region", "value": "us"}
    found = (await client.vector_stores.search(store.id, query="days", filters=only)).data  # type: ignore[arg-type]
    assert {one.file_id for one in found} == {ids[1]}
    assert found[0].attributes == {"region": "us", "express": True}
    await client.vector_stores.files.update(ids[0], vector_store_id=store.id, attributes={"region": "us"})
    found = (await client.vector_stores.search(store.id, query="days", filters=only)).data  # type: ignore[arg-type]
    assert {one.file_id for one in found} == set(ids)
    cancelled = await client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.file_counts.completed == 2


async def test_a_store_whose_files_are_not_there_is_not_made(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    good = await knowledge_app.text("a.md", RETURNS)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.vector_stores.create(name="a", file_ids=[good, "file-none"])
    assert detail(caught.value) == (404, "file_not_found", "file_ids")
    assert [store.id async for store in client.vector_stores.list()] == []
    await client.files.delete(good)
    assert good not in knowledge_app.on_disk()


def no_room(*_: object) -> None:
    raise DiskFull("no room")


@pytest.mark.parametrize(("module", "name"), [(service, "note"), (records, "add_files"), (service, "place_holds")])
async def test_a_store_and_its_files_are_made_together_or_not_at_all(
    knowledge_app: KnowledgeApp, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    client = knowledge_app.client()
    file_id, store = await knowledge_app.text("a.txt", "boots"), await client.vector_stores.create(name="a")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, no_room)  # whichever write meets the full disk, the others are undone
        with pytest.raises(openai.APIStatusError) as whole:
            await client.vector_stores.create(name="b", file_ids=[file_id])
        with pytest.raises(openai.APIStatusError) as added:
            await client.vector_stores.file_batches.create(store.id, file_ids=[file_id])
    assert [detail(caught.value)[:2] for caught in (whole, added)] == [(507, "disk_full")] * 2
    assert [listed.id async for listed in client.vector_stores.list()] == [store.id]
    assert (await client.vector_stores.retrieve(store.id)).file_counts.total == 0
    assert (await client.files.delete(file_id)).deleted
    assert not list((knowledge_app.home / "files").glob(f"{file_id}*")), "no store holds its bytes"


def release_then_no_room(*given: Any) -> None:
    release_holds(*given)
    no_room()


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (service, "note", no_room),
        (service, "release_holds", release_then_no_room),
        (records, "demand_store", no_room),
    ],
)
async def test_what_is_refused_of_a_deletion_has_deleted_and_audited_nothing(
    knowledge_app: KnowledgeApp, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, broken: Any
) -> None:
    client, (store, file_id) = knowledge_app.client(), await filled(knowledge_app)
    before = (await knowledge_app.http.get("/v1/audit")).json()["data"]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(openai.APIStatusError) as removed:
            await client.vector_stores.files.delete(file_id, vector_store_id=store)
        with pytest.raises(openai.APIStatusError) as deleted:
            await client.vector_stores.delete(store)
    assert [detail(caught.value)[:2] for caught in (removed, deleted)] == [(507, "disk_full")] * 2
    assert (await knowledge_app.http.get("/v1/audit")).json()["data"] == before
    assert (await client.vector_stores.search(store, query="days")).data[0].file_id == file_id
    await client.files.delete(file_id)
    assert file_id in knowledge_app.on_disk(), "the store holds its bytes"
    await client.vector_stores.delete(store)
    assert file_id not in knowledge_app.on_disk()


@pytest.mark.parametrize(("owner", "name"), [(IndexCache, "delete_documents"), (Files, "collect")])
async def test_a_document_that_is_removed_is_answered_as_removed(
    knowledge_app: KnowledgeApp, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Its passages and bytes may stay a while; the same request again would find no document."""
    client, (store, file_id) = knowledge_app.client(), await filled(knowledge_app)

    async def broken(*_: object) -> None:
        no_room()

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        assert (await client.vector_stores.files.delete(file_id, vector_store_id=store)).deleted
        assert (await client.files.delete(file_id)).deleted
        assert (await client.vector_stores.search(store, query="days")).data == []
        assert (await client.vector_stores.delete(store)).deleted
    await knowledge_app.files.collect()
    assert file_id not in knowledge_app.on_disk()


async def filled(knowledge_app: KnowledgeApp) -> tuple[str, str]:
    """A store and its only document, indexed and searched."""
    client = knowledge_app.client()
    file_id, store = await knowledge_app.text("a.md", RETURNS), await client.vector_stores.create(name="a")
    await client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=50)
    assert (await client.vector_stores.search(store.id, query="days")).data
    return store.id, file_id


async def test_lists_come_in_pages(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    made = [(await client.vector_stores.create(name=f"s{number}")).id for number in range(5)]
    seen = [store.id async for store in client.vector_stores.list(limit=2)]
    assert seen == made[::-1]
    page = await client.vector_stores.list(limit=2, order="asc", after=made[1])
    assert [store.id for store in page.data] == made[2:4]
    page = await client.vector_stores.list(limit=2, order="asc", before=made[4])
    assert [store.id for store in page.data] == made[2:4]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.vector_stores.list(after="vs_no")
    assert detail(caught.value) == (400, "invalid_value", "after")


async def test_a_key_sees_the_stores_that_its_globs_match(knowledge_app: KnowledgeApp) -> None:
    admin = knowledge_app.client()
    secret = await admin.vector_stores.create(name="secret")
    open_ = await admin.vector_stores.create(name="public-faq")
    key = await knowledge_app.key("knowledge", stores=["public-*"])
    narrow = knowledge_app.client(key)
    assert [store.id async for store in narrow.vector_stores.list()] == [open_.id]
    file_id = await knowledge_app.text("a.md", RETURNS, key)
    for store_id in (secret.id, "vs_none"):
        for attempt in (
            narrow.vector_stores.retrieve(store_id),
            narrow.vector_stores.update(store_id, name="public-mine"),
            narrow.vector_stores.delete(store_id),
            narrow.vector_stores.search(store_id, query="x"),
            narrow.vector_stores.files.create(store_id, file_id=file_id),
            narrow.vector_stores.files.retrieve("f", vector_store_id=store_id),
            narrow.vector_stores.files.delete("f", vector_store_id=store_id),
            narrow.vector_stores.files.content("f", vector_store_id=store_id),
            narrow.vector_stores.files.update("f", vector_store_id=store_id, attributes={}),
            narrow.vector_stores.file_batches.create(store_id, file_ids=[file_id]),
            narrow.vector_stores.file_batches.retrieve("b", vector_store_id=store_id),
            narrow.vector_stores.file_batches.cancel("b", vector_store_id=store_id),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                await attempt
            assert caught.value.code == "vector_store_not_found"
    with pytest.raises(openai.PermissionDeniedError) as refused:
        await narrow.vector_stores.create(name="mine")
    assert refused.value.code == "store_not_allowed"
    with pytest.raises(openai.PermissionDeniedError):
        await narrow.vector_stores.update(open_.id, name="secret")
    assert (await narrow.vector_stores.create(name="public-mine")).name == "public-mine"


async def test_scopes(knowledge_app: KnowledgeApp) -> None:
    store = await knowledge_app.client().vector_stores.create(name="a")
    asker = knowledge_app.client(await knowledge_app.key("infer"))
    assert (await asker.vector_stores.search(store.id, query="x")).data == []
    with pytest.raises(openai.PermissionDeniedError):
        await asker.vector_stores.retrieve(store.id)
    pusher = knowledge_app.client(await knowledge_app.key("adapters"))
    with pytest.raises(openai.PermissionDeniedError):
        await pusher.vector_stores.search(store.id, query="x")


async def test_another_projects_store_does_not_exist(knowledge_app: KnowledgeApp) -> None:
    store = await knowledge_app.client().vector_stores.create(name="a")
    stranger = knowledge_app.client(await knowledge_app.key("knowledge", "infer", project="acme"))
    with pytest.raises(openai.NotFoundError):
        await stranger.vector_stores.search(store.id, query="x")
    file_id = await knowledge_app.text("a.md", RETURNS)
    own = await stranger.vector_stores.create(name="a")
    with pytest.raises(openai.NotFoundError) as caught:
        await stranger.vector_stores.files.create(own.id, file_id=file_id)
    assert caught.value.code == "file_not_found"
    assert [one.id async for one in stranger.vector_stores.list()] == [own.id]


async def test_a_store_keeps_the_bytes_of_its_files(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    file_id = await knowledge_app.text("returns.md", RETURNS)
    store = await client.vector_stores.create(name="a")
    await client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=50)
    await client.files.delete(file_id)
    assert file_id in knowledge_app.on_disk()
    assert (await client.vector_stores.search(store.id, query="days")).data
    await client.vector_stores.delete(store.id)
    assert file_id not in knowledge_app.on_disk()


async def test_what_cannot_go_into_a_store(knowledge_app: KnowledgeApp) -> None:
    client = knowledge_app.client()
    store = await client.vector_stores.create(name="a")
    examples = await knowledge_app.made(purpose="fine-tune")
    for file_id, status, param in (("file-none", 404, "file_id"), (examples, 400, "file_id")):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.vector_stores.files.create(store.id, file_id=file_id)
        assert (caught.value.status_code, caught.value.param) == (status, param)
    picture = await knowledge_app.made(b"\x89PNG\r\n\x1a\n" + bytes(200), "assistants", name="a.png")
    file = await client.vector_stores.files.create_and_poll(picture, vector_store_id=store.id, poll_interval_ms=50)
    assert file.status == "failed"
    assert file.last_error is not None
    assert file.last_error.code in ("unsupported_file", "invalid_file")
    assert (await client.vector_stores.retrieve(store.id)).file_counts.failed == 1


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"expires_after": {"anchor": "last_active_at", "days": 3}}, "expires_after"),
        ("", {"name": 5}, "name"),
        ("", {"metadata": {"a": "x" * 600}}, "metadata.a"),
        ("", {"colour": "red"}, "colour"),
        ("/ID/search", {"query": "x", "rewrite_query": True}, "rewrite_query"),
        ("/ID/search", {"query": []}, "query"),
        ("/ID/search", {"query": "x", "max_num_results": 51}, "max_num_results"),
        ("/ID/search", {"query": "x", "filters": {"type": "like"}}, "filters.type"),
        ("/ID/files", {}, "file_id"),
        ("/ID/files", {"file_id": "f", "chunking_strategy": {"type": "static"}}, "chunking_strategy"),
        ("/ID/file_batches", {}, "file_ids"),
        ("/ID/file_batches", {"file_ids": ["a"], "files": [{"file_id": "a"}]}, "file_ids"),
    ],
)
async def test_a_wrong_field_is_named(
    knowledge_app: KnowledgeApp, path: str, body: dict[str, object], param: str
) -> None:
    store = await knowledge_app.client().vector_stores.create(name="a")
    answer = await knowledge_app.http.post("/v1/vector_stores" + path.replace("ID", store.id), json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_restart_finds_everything_and_forgets_what_a_crash_left(tmp_path: Path) -> None:
    async with vectors() as url:
        async with KnowledgeApp(tmp_path, url).open() as first:
            client = first.client()
            kept, lost = await first.text("a.md", RETURNS), await first.text("b.md", DELIVERY)
            store = await client.vector_stores.create(name="a")
            await client.vector_stores.files.create_and_poll(kept, vector_store_id=store.id, poll_interval_ms=50)
            # as if the gateway had died between the hold and the store
            await first.database.run(lambda db: place_holds(db, _admin(), [lost], "file_id", "vs_gone"))
            for file_id in (kept, lost):
                await client.files.delete(file_id)
        async with KnowledgeApp(tmp_path, url).open() as second:
            await second.files.collect()
            assert lost not in second.on_disk()
            assert kept in second.on_disk()
            found = (await second.client().vector_stores.search(store.id, query="days")).data
            assert "45 days" in found[0].content[0].text


def _admin() -> object:
    from service.access.caller import Caller, Scope

    return Caller("admin", "default", frozenset({Scope.ADMIN}))


ORDERS = "order,customer,item\nMT-1,c-1,lantern\nMT-2,c-2,settle\nMT-3,,lost\n"


async def test_a_key_with_filters_finds_its_own_rows_and_what_is_everyones(knowledge_app: KnowledgeApp) -> None:
    admin = knowledge_app.client()
    ids = [await knowledge_app.text("orders.csv", ORDERS), await knowledge_app.text("returns.md", RETURNS)]
    store = await admin.vector_stores.create(name="shop")
    await admin.vector_stores.file_batches.create_and_poll(
        store.id,
        files=[{"file_id": ids[0]}, {"file_id": ids[1], "attributes": {"customer": "*"}}],
        poll_interval_ms=50,
    )
    key = (await knowledge_app.http.post("/v1/keys", json={"name": "c", "filters": {"customer": "c-1"}})).json()["key"]
    shopper = knowledge_app.client(key)

    async def found(client: openai.AsyncOpenAI, **more: object) -> set[str]:
        query = "order settle lantern lost days"
        results = (await client.vector_stores.search(store.id, query=query, **more)).data  # type: ignore[arg-type]
        return {str(result.attributes["customer"]) for result in results if result.attributes}

    assert len((await admin.vector_stores.search(store.id, query="order settle lantern lost days")).data) == 4
    assert await found(shopper) == {"c-1", "*"}
    own: dict[str, object] = {"type": "eq", "key": "customer", "value": "c-1"}
    theirs = {**own, "value": "c-2"}
    assert await found(shopper, filters=own) == {"c-1"}
    assert await found(shopper, filters={"type": "or", "filters": [own, theirs]}) == {"c-1"}
    assert await found(shopper, filters={**theirs, "type": "ne"}) == {"c-1", "*"}
    assert await found(shopper, filters={**theirs, "type": "gte"}) == set()
    for filters in (theirs, {"type": "and", "filters": [own, theirs]}):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await found(shopper, filters=filters)
        assert detail(caught.value) == (403, "filter_not_allowed", "filters")
    for attempt in (
        shopper.vector_stores.files.content(ids[0], vector_store_id=store.id),
        shopper.vector_stores.files.update(ids[0], vector_store_id=store.id, attributes={"customer": "c-1"}),
        shopper.vector_stores.files.list(store.id),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            await attempt
    # the scope `infer` shows files of batches alone, and such a key its own
    with pytest.raises(openai.NotFoundError):
        await shopper.files.content(ids[0])
    assert (await shopper.files.list()).data == []


async def test_a_project_s_stores_are_bounded_together(tmp_path: Path) -> None:
    async with vectors() as url, KnowledgeApp(tmp_path, url, max_stores_gib=1500 / 2**30).open() as app:
        client = app.client()
        store = await client.vector_stores.create(name="policies")
        files = client.vector_stores.files
        first = await app.text("returns.md", RETURNS)
        done = await files.create_and_poll(first, vector_store_id=store.id, poll_interval_ms=50)
        assert (done.status, done.usage_bytes < 1500) == ("completed", True)
        long = await app.text("long.md", "\n\n".join(f"Paragraph {n} says how parcels go." for n in range(200)))
        refused = await files.create_and_poll(long, vector_store_id=store.id, poll_interval_ms=50)
        assert refused.status == "failed"
        assert refused.last_error is not None
        assert "HATRACK_MAX_STORES_GIB" in refused.last_error.message
        app.knowledge._max_project_bytes = done.usage_bytes
        with pytest.raises(openai.APIStatusError) as caught:
            await files.create(store.id, file_id=await app.text("delivery.md", DELIVERY))
        assert detail(caught.value) == (413, "project_storage_full", "file_id")
        await files.create(store.id, file_id=first, attributes={"team": "shop"})
        await files.delete(first, vector_store_id=store.id)
        again = await files.create_and_poll(first, vector_store_id=store.id, poll_interval_ms=50)
        assert again.status == "completed"
