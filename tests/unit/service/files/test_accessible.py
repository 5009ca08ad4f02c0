"""Files follow what they belong to: what a key sees, attaches and deletes whose globs narrow it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from service.access.audit import SYSTEM, Actor
from service.database import MIGRATIONS
from service.files import holds
from service.registry import records as registry
from tests.unit.service.files.cabinet import LINE, bearer, error_of
from tests.unit.service.files.test_holds import version
from tests.unit.service.knowledge.library import Library, vectors


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    async with vectors() as url, Library(tmp_path, url).open() as ready:
        yield ready


async def ask(library: Library, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    return await library.http.request(method, path, headers=bearer(key), **more)


async def store(library: Library, name: str, *files: str, key: str | None = None) -> str:
    answer = await library.http.post(
        "/v1/vector_stores", json={"name": name, "file_ids": list(files)}, headers=bearer(key)
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def push(library: Library, reference: str, *files: str, actor: Actor = SYSTEM) -> None:
    name = reference.partition("@")[0]
    draft = version(*files)
    await library.database.run(lambda db: registry.add_version(db, "default", name, draft, actor=actor))


async def sees(library: Library, key: str, file_id: str) -> bool:
    """Whether a key sees a file, on each way that there is the same."""
    shown = await ask(library, key, "GET", f"/v1/files/{file_id}")
    content = await ask(library, key, "GET", f"/v1/files/{file_id}/content")
    listed = file_id in await library.listed(key)
    assert {shown.status_code == 200, content.status_code == 200, listed} in ({True}, {False})
    if not listed:
        assert error_of(shown)["code"] == error_of(content)["code"] == "file_not_found"
    return listed


async def key_id(library: Library, key: str) -> str:
    found = library.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})
    return found.key_id


async def test_a_document_is_reached_through_its_store(library: Library) -> None:
    narrow = await library.key("knowledge", stores=["mine-*"])
    loose, theirs, shared = [await library.text(f"{n}.txt", f"text {n}") for n in range(3)]
    hers = await store(library, "hers", theirs, shared)
    mine = await store(library, "mine-1", shared)
    assert [await sees(library, narrow, one) for one in (loose, theirs, shared)] == [False, False, True]

    for taken in (loose, theirs):
        answer = await ask(library, narrow, "POST", f"/v1/vector_stores/{mine}/files", json={"file_id": taken})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
        made = await ask(library, narrow, "POST", "/v1/vector_stores", json={"name": "mine-2", "file_ids": [taken]})
        assert made.status_code == 404
        batch = await ask(
            library, narrow, "POST", f"/v1/vector_stores/{mine}/file_batches", json={"file_ids": [shared, taken]}
        )
        assert batch.status_code == 404
        assert (await ask(library, narrow, "DELETE", f"/v1/files/{taken}")).status_code == 404
    refused = await ask(library, narrow, "DELETE", f"/v1/files/{shared}")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "file_not_allowed")

    await library.http.delete(f"/v1/vector_stores/{hers}/files/{shared}")
    assert (await ask(library, narrow, "DELETE", f"/v1/files/{shared}")).status_code == 200
    assert set(await library.listed()) == {loose, theirs}


async def test_what_a_key_has_uploaded_is_its_own(library: Library) -> None:
    narrow, twin = [await library.key("knowledge", stores=["mine-*"]) for _ in range(2)]
    own = await library.text("own.txt", "mine", narrow)
    assert await sees(library, narrow, own)
    assert not await sees(library, twin, own)
    await store(library, "hers", own)  # whoever is not narrowed may
    assert await sees(library, narrow, own)
    mine = await store(library, "mine-1", own, key=narrow)
    assert await sees(library, twin, own)
    assert (await ask(library, twin, "DELETE", f"/v1/files/{own}")).status_code == 403
    assert (await ask(library, narrow, "DELETE", f"/v1/files/{own}")).status_code == 200
    answer = await ask(library, narrow, "GET", f"/v1/vector_stores/{mine}/files/{own}/content")
    assert answer.status_code == 200  # the stores still have it


async def test_training_data_is_reached_through_its_adapter(library: Library) -> None:
    narrow = await library.key("train", "knowledge", adapters=["mine*"])
    loose, theirs, shared = [await library.made(LINE * n) for n in (1, 2, 3)]
    document = await library.text("a.txt", "of a store, which no glob narrows here")
    await push(library, "hers@1", theirs, shared)
    await push(library, "mine@1", shared)
    assert [await sees(library, narrow, one) for one in (loose, theirs, shared)] == [False, False, True]
    assert await sees(library, narrow, document)
    assert (await ask(library, narrow, "DELETE", f"/v1/files/{shared}")).status_code == 403
    stores_alone = await library.key("train", stores=["x"])
    assert [await sees(library, stores_alone, one) for one in (loose, document)] == [True, False]


async def test_no_upload_s_lineage_reaches_further_than_its_key(library: Library) -> None:
    narrow = await library.key("train", "adapters", adapters=["mine*"])
    theirs, own = await library.made(LINE), await library.made(LINE * 2, key=narrow)
    actor = Actor(await key_id(library, narrow), "default")
    await push(library, "mine@1", theirs, own, actor=actor)
    held = await library.database.run(
        lambda db: set(db.scalars(sa.text("SELECT file_id FROM file_holds WHERE holder = 'mine@1'")))
    )
    assert held == {own}
    assert not await sees(library, narrow, theirs)


async def test_a_job_s_files_are_reached_by_who_may_use_its_adapters(library: Library) -> None:
    data = await library.made(LINE)
    job_id, job = await library.job_key(adapters=("mine", "mine-parent"))
    await library.files.hold("default", job_id, {"training_file": data})
    results = await library.made(b"step,loss\n", "fine-tune-results", name="r.csv", key=job)
    narrow = {globs: await library.key("train", adapters=list(globs)) for globs in (("mine*",), ("mine",), ("x",))}
    assert [await sees(library, key, data) for key in narrow.values()] == [True, False, False]
    assert [await sees(library, key, results) for key in narrow.values()] == [True, False, False]
    assert await sees(library, job, results)
    assert (await ask(library, job, "GET", f"/v1/files/{data}/content")).status_code == 200

    _, of_nothing = await library.job_key(adapters=())
    report = await library.made(b"{}", "fine-tune-results", name="r.json", key=of_nothing)
    assert [await sees(library, key, report) for key in narrow.values()] == [False, False, False]


async def test_a_key_reaches_what_its_own_jobs_have(library: Library) -> None:
    narrow = await library.key("train", "infer", "adapters", adapters=["mine"])
    _, job = await library.job_key(parent=await key_id(library, narrow), adapters=("mine",))
    report = await library.made(b"{}", "fine-tune-results", name="r.json", key=job)
    assert await sees(library, narrow, report)


async def test_a_verdict_holds_nothing_beyond_the_reach_of_the_key_that_brings_it(library: Library) -> None:
    theirs = await library.made(LINE, "evals")
    job_id, job = await library.job_key(adapters=("mine",))
    caller = library.keys.authenticator.authenticate({"authorization": f"Bearer {job}"})
    missing = await library.database.run(
        lambda db: holds.hold_for_verdict(db, caller, "mine@1", {"files.held_out": theirs})
    )
    assert missing == ("files.held_out", theirs)
    await library.files.hold("default", job_id, {"held_out": theirs})
    assert (
        await library.database.run(lambda db: holds.hold_for_verdict(db, caller, "mine@1", {"held_out": theirs}))
        is None
    )


async def test_files_from_before_keys_were_noted_are_told_by_the_audit(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "0007")
        db.exec_driver_sql("INSERT INTO projects (id, created_at) VALUES ('p', 1)")
        for name in ("a", "b"):
            db.exec_driver_sql(
                "INSERT INTO files (id, project, filename, purpose, bytes, sha256, created_at) "
                "VALUES (?, 'p', 'f', 'evals', 1, 'x', 1)",
                (name,),
            )
        db.exec_driver_sql(
            "INSERT INTO audit (created_at, key_id, project, action, target) "
            "VALUES (1, 'key_1', 'p', 'file.create', 'a')"
        )
        command.upgrade(config, "head")
        rows = dict(db.exec_driver_sql("SELECT id, key_id FROM files").all())
    engine.dispose()
    assert rows == {"a": "key_1", "b": None}
