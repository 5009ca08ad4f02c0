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
from tests.unit.service.files.files_app import LINE, bearer, error_of
from tests.unit.service.files.test_holds import version
from tests.unit.service.knowledge.knowledge_app import KnowledgeApp, vectors


@pytest.fixture
async def knowledge_app(tmp_path: Path) -> AsyncIterator[KnowledgeApp]:
    async with vectors() as url, KnowledgeApp(tmp_path, url).open() as ready:
        yield ready


async def ask(knowledge_app: KnowledgeApp, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    return await knowledge_app.http.request(method, path, headers=bearer(key), **more)


async def store(knowledge_app: KnowledgeApp, name: str, *files: str, key: str | None = None) -> str:
    answer = await knowledge_app.http.post(
        "/v1/vector_stores", json={"name": name, "file_ids": list(files)}, headers=bearer(key)
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def push(knowledge_app: KnowledgeApp, reference: str, *files: str, actor: Actor = SYSTEM) -> None:
    name = reference.partition("@")[0]
    draft = version(*files)
    await knowledge_app.database.run(lambda db: registry.add_version(db, "default", name, draft, actor=actor))


async def sees(knowledge_app: KnowledgeApp, key: str, file_id: str) -> bool:
    """Whether a key sees a file, on each way that there is the same."""
    shown = await ask(knowledge_app, key, "GET", f"/v1/files/{file_id}")
    content = await ask(knowledge_app, key, "GET", f"/v1/files/{file_id}/content")
    listed = file_id in await knowledge_app.listed(key)
    assert {shown.status_code == 200, content.status_code == 200, listed} in ({True}, {False})
    if not listed:
        assert error_of(shown)["code"] == error_of(content)["code"] == "file_not_found"
    return listed


async def key_id(knowledge_app: KnowledgeApp, key: str) -> str:
    found = knowledge_app.keys.authenticator.authenticate({"authorization": f"Bearer {key}"})
    return found.key_id


async def test_a_document_is_reached_through_its_store(knowledge_app: KnowledgeApp) -> None:
    narrow = await knowledge_app.key("knowledge", stores=["mine-*"])
    loose, theirs, shared = [await knowledge_app.text(f"{n}.txt", f"text {n}") for n in range(3)]
    hers = await store(knowledge_app, "hers", theirs, shared)
    mine = await store(knowledge_app, "mine-1", shared)
    assert [await sees(knowledge_app, narrow, one) for one in (loose, theirs, shared)] == [False, False, True]

    for taken in (loose, theirs):
        answer = await ask(knowledge_app, narrow, "POST", f"/v1/vector_stores/{mine}/files", json={"file_id": taken})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
        made = await ask(
            knowledge_app, narrow, "POST", "/v1/vector_stores", json={"name": "mine-2", "file_ids": [taken]}
        )
        assert made.status_code == 404
        batch = await ask(
            knowledge_app, narrow, "POST", f"/v1/vector_stores/{mine}/file_batches", json={"file_ids": [shared, taken]}
        )
        assert batch.status_code == 404
        assert (await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{taken}")).status_code == 404
    refused = await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{shared}")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "file_not_allowed")

    await knowledge_app.http.delete(f"/v1/vector_stores/{hers}/files/{shared}")
    assert (await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{shared}")).status_code == 200
    assert set(await knowledge_app.listed()) == {loose, theirs}


async def test_what_a_key_has_uploaded_is_its_own(knowledge_app: KnowledgeApp) -> None:
    narrow, twin = [await knowledge_app.key("knowledge", stores=["mine-*"]) for _ in range(2)]
    own = await knowledge_app.text("own.txt", "mine", narrow)
    assert await sees(knowledge_app, narrow, own)
    assert not await sees(knowledge_app, twin, own)
    await store(knowledge_app, "hers", own)  # whoever is not narrowed may
    assert await sees(knowledge_app, narrow, own)
    mine = await store(knowledge_app, "mine-1", own, key=narrow)
    assert await sees(knowledge_app, twin, own)
    assert (await ask(knowledge_app, twin, "DELETE", f"/v1/files/{own}")).status_code == 403
    assert (await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{own}")).status_code == 200
    answer = await ask(knowledge_app, narrow, "GET", f"/v1/vector_stores/{mine}/files/{own}/content")
    assert answer.status_code == 200  # the stores still have it


async def test_training_data_is_reached_through_its_adapter(knowledge_app: KnowledgeApp) -> None:
    narrow = await knowledge_app.key("train", "knowledge", adapters=["mine*"])
    loose, theirs, shared = [await knowledge_app.made(LINE * n) for n in (1, 2, 3)]
    document = await knowledge_app.text("a.txt", "of a store, which no glob narrows here")
    await push(knowledge_app, "hers@1", theirs, shared)
    await push(knowledge_app, "mine@1", shared)
    assert [await sees(knowledge_app, narrow, one) for one in (loose, theirs, shared)] == [False, False, True]
    assert await sees(knowledge_app, narrow, document)
    assert (await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{shared}")).status_code == 403
    stores_alone = await knowledge_app.key("train", stores=["x"])
    assert [await sees(knowledge_app, stores_alone, one) for one in (loose, document)] == [True, False]


@pytest.mark.parametrize("globs", [{"stores": ["mine-*"]}, {"adapters": ["mine*"]}])
async def test_a_narrowed_key_reaches_the_batch_files_of_no_other(
    knowledge_app: KnowledgeApp, globs: dict[str, list[str]]
) -> None:
    narrow, whole = await knowledge_app.key("infer", **globs), await knowledge_app.key("infer")
    theirs = await knowledge_app.made(b"{}\n", "batch", name="theirs.jsonl")
    own = await knowledge_app.made(b"{}\n", "batch", name="own.jsonl", key=narrow)
    assert [await sees(knowledge_app, narrow, one) for one in (theirs, own)] == [False, True]
    assert [await sees(knowledge_app, whole, one) for one in (theirs, own)] == [True, True]
    assert (await ask(knowledge_app, narrow, "DELETE", f"/v1/files/{theirs}")).status_code == 404


async def test_no_upload_s_lineage_reaches_further_than_its_key(knowledge_app: KnowledgeApp) -> None:
    narrow = await knowledge_app.key("train", "adapters", adapters=["mine*"])
    theirs, own = await knowledge_app.made(LINE), await knowledge_app.made(LINE * 2, key=narrow)
    actor = Actor(await key_id(knowledge_app, narrow), "default")
    await push(knowledge_app, "mine@1", theirs, own, actor=actor)
    held = await knowledge_app.database.run(
        lambda db: set(db.scalars(sa.text("SELECT file_id FROM file_holds WHERE holder = 'mine@1'")))
    )
    assert held == {own}
    assert not await sees(knowledge_app, narrow, theirs)


async def test_a_job_s_files_are_reached_by_who_may_use_its_adapters(knowledge_app: KnowledgeApp) -> None:
    data = await knowledge_app.made(LINE)
    job_id, job = await knowledge_app.job_key(adapters=("mine", "mine-parent"))
    await knowledge_app.files.hold("default", job_id, {"training_file": data})
    results = await knowledge_app.made(b"step,loss\n", "fine-tune-results", name="r.csv", key=job)
    narrow = {
        globs: await knowledge_app.key("train", adapters=list(globs)) for globs in (("mine*",), ("mine",), ("x",))
    }
    assert [await sees(knowledge_app, key, data) for key in narrow.values()] == [True, False, False]
    assert [await sees(knowledge_app, key, results) for key in narrow.values()] == [True, False, False]
    assert await sees(knowledge_app, job, results)
    assert (await ask(knowledge_app, job, "GET", f"/v1/files/{data}/content")).status_code == 200

    _, of_nothing = await knowledge_app.job_key(adapters=())
    report = await knowledge_app.made(b"{}", "fine-tune-results", name="r.json", key=of_nothing)
    assert [await sees(knowledge_app, key, report) for key in narrow.values()] == [False, False, False]


async def test_what_a_run_writes_is_reached_by_who_may_read_its_stores(knowledge_app: KnowledgeApp) -> None:
    """Whatever holds it: a version's report quotes the stores that the version is grounded in."""
    runs = {"public": (("vs_1", "public"),), "both": (("vs_1", "public"), ("vs_2", "secret")), "unknown": None}
    reports = {}
    for number, (name, stores) in enumerate(runs.items(), start=1):
        _, job = await knowledge_app.job_key(adapters=("mine",), run_stores=stores)
        reports[name] = await knowledge_app.made(b"{}", "fine-tune-results", name="r.json", key=job)
        await push(knowledge_app, f"mine@{number}", reports[name])
    for globs, reached in (
        ({"stores": ["pub*"]}, {"public"}),
        ({"stores": ["vs_?"]}, {"public", "both"}),
        ({"stores": ["public", "secret"], "adapters": ["mine"]}, {"public", "both"}),
        ({"adapters": ["mine"]}, set(runs)),
    ):
        key = await knowledge_app.key("train", **globs)
        assert {name for name, report in reports.items() if await sees(knowledge_app, key, report)} == reached


async def test_a_key_reaches_what_its_own_jobs_have(knowledge_app: KnowledgeApp) -> None:
    narrow = await knowledge_app.key("train", "infer", "adapters", adapters=["mine"])
    _, job = await knowledge_app.job_key(parent=await key_id(knowledge_app, narrow), adapters=("mine",))
    report = await knowledge_app.made(b"{}", "fine-tune-results", name="r.json", key=job)
    assert await sees(knowledge_app, narrow, report)


async def test_a_verdict_holds_nothing_beyond_the_reach_of_the_key_that_brings_it(knowledge_app: KnowledgeApp) -> None:
    theirs = await knowledge_app.made(LINE, "evals")
    job_id, job = await knowledge_app.job_key(adapters=("mine",))
    caller = knowledge_app.keys.authenticator.authenticate({"authorization": f"Bearer {job}"})
    missing = await knowledge_app.database.run(
        lambda db: holds.hold_for_verdict(db, caller, "mine@1", {"files.held_out": theirs})
    )
    assert missing == ("files.held_out", theirs)
    await knowledge_app.files.hold("default", job_id, {"held_out": theirs})
    assert (
        await knowledge_app.database.run(lambda db: holds.hold_for_verdict(db, caller, "mine@1", {"held_out": theirs}))
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
