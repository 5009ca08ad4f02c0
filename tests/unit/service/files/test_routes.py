"""Who sees which files, in which order, and that another project's are like none."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import DiskFull
from service.files import holds, records
from service.files.service import Files
from tests.unit.service.files.files_app import LINE, FilesApp, bearer, error_of
from tests.unit.service.inference.fakes import until

NOBODYS = "file-" + "0" * 24


async def test_a_list_has_every_file_once_in_either_order(files_app: FilesApp) -> None:
    made = [await files_app.made(b"x", purpose) for purpose in ("evals", "user_data", "evals", "assistants")]
    assert await files_app.listed() == made[::-1]
    assert await files_app.listed(order="asc") == made
    assert await files_app.listed(purpose="evals") == [made[2], made[0]]
    for order in ("asc", "desc"):
        seen: list[str] = []
        more = True
        while more:
            query: dict[str, Any] = {"limit": 3, "order": order} | ({"after": seen[-1]} if seen else {})
            page = (await files_app.http.get("/v1/files", params=query)).json()
            ids = [item["id"] for item in page["data"]]
            assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[0], ids[-1])
            seen, more = seen + ids, page["has_more"]
        assert seen == (made if order == "asc" else made[::-1])


async def test_a_deleted_file_still_marks_its_place(files_app: FilesApp) -> None:
    made = [await files_app.made() for _ in range(3)]
    await files_app.http.delete(f"/v1/files/{made[1]}")
    assert await files_app.listed(after=made[1]) == [made[0]]


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"purpose": "vision"}, {"after": NOBODYS}]
)
async def test_a_wrong_query_is_named(files_app: FilesApp, query: dict[str, Any]) -> None:
    answer = await files_app.http.get("/v1/files", params=query)
    assert (answer.status_code, error_of(answer)["param"]) == (400, next(iter(query)))


async def test_documents_need_knowledge_or_train_and_the_rest_train(files_app: FilesApp) -> None:
    keys = {scope: await files_app.key(scope) for scope in ("infer", "adapters", "knowledge", "train")}
    made = {
        purpose: await files_app.made(LINE, purpose) for purpose in ("fine-tune", "evals", "assistants", "user_data")
    }
    documents = {made["assistants"], made["user_data"]}
    assert set(await files_app.listed(keys["train"])) == set(made.values())
    assert set(await files_app.listed(keys["knowledge"])) == documents
    for purpose, file_id in made.items():
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            assert (await files_app.http.get(path, headers=bearer(keys["train"]))).status_code == 200
            seen = await files_app.http.get(path, headers=bearer(keys["knowledge"]))
            assert seen.status_code == (200 if file_id in documents else 404)
        put = await files_app.put(LINE, purpose, key=keys["knowledge"])
        assert put.status_code == (200 if file_id in documents else 403)
        assert put.status_code == 200 or "`train`" in error_of(put)["message"]
    refused = await files_app.http.get("/v1/files?purpose=evals", headers=bearer(keys["knowledge"]))
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
    deleted = await files_app.http.delete(f"/v1/files/{made['evals']}", headers=bearer(keys["knowledge"]))
    assert deleted.status_code == 404


async def test_files_of_batches_need_the_scope_infer(files_app: FilesApp) -> None:
    keys = {scope: await files_app.key(scope) for scope in ("infer", "train", "knowledge")}
    batch, training = await files_app.made(b"{}", "batch"), await files_app.made()
    assert await files_app.listed(keys["infer"]) == [batch]
    assert await files_app.listed(keys["train"]) == [training]
    for scope in ("train", "knowledge"):
        answer = await files_app.put(b"{}", "batch", key=keys[scope])
        assert answer.status_code == 403
        assert "`infer`" in error_of(answer)["message"]
        seen = await files_app.http.get(f"/v1/files/{batch}", headers=bearer(keys[scope]))
        assert seen.status_code == 404
    assert (await files_app.put(key=keys["infer"])).status_code == 403
    assert (await files_app.put(b"{}", "batch", key=keys["infer"])).status_code == 200


async def test_a_key_without_any_of_the_scopes_learns_nothing_about_its_body(files_app: FilesApp) -> None:
    key = await files_app.key("adapters")
    file_id = await files_app.made()
    for method, path in (
        ("POST", "/v1/files"),
        ("GET", "/v1/files?limit=0"),
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
    ):
        answer = await files_app.http.request(method, path, content=b"no form at all", headers=bearer(key))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope"), path
        assert "`train`" in error_of(answer)["message"]


async def test_another_project_s_file_is_like_none(files_app: FilesApp) -> None:
    file_id, other = await files_app.made(), await files_app.key("train", project="other")
    assert await files_app.listed(other) == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answers = [
            await files_app.http.request(method, f"/v1/files/{asked}{path}", headers=bearer(other))
            for asked in (file_id, NOBODYS)
        ]
        found, never = (
            (a.status_code, a.text.replace(asked, "ID")) for a, asked in zip(answers, (file_id, NOBODYS), strict=True)
        )
        assert found == never
        assert found[0] == 404
    after = [
        (await files_app.http.get("/v1/files", params={"after": asked}, headers=bearer(other))).text
        for asked in (file_id, NOBODYS)
    ]
    assert after[0] == after[1]
    assert await files_app.listed() == [file_id]


async def test_results_are_written_by_jobs_alone(files_app: FilesApp) -> None:
    _, job = await files_app.job_key()
    made = await files_app.put(b"step,loss\n", "fine-tune-results", key=job)
    assert made.json()["purpose"] == "fine-tune-results"
    assert await files_app.listed(purpose="fine-tune-results") == [made.json()["id"]]
    assert (await files_app.put(b"step,loss\n", "fine-tune-results")).status_code == 403


async def test_changes_are_in_the_audit(files_app: FilesApp) -> None:
    file_id = await files_app.made(name="voices.jsonl")
    await files_app.http.delete(f"/v1/files/{file_id}")
    entries = (await files_app.http.get("/v1/audit")).json()["data"]
    deleted, created = entries[:2]
    assert (created["action"], created["target"], created["key_id"]) == ("file.create", file_id, "admin")
    assert created["detail"]["filename"] == "voices.jsonl"
    assert created["detail"]["bytes"] == len(LINE)
    assert (deleted["action"], deleted["target"]) == ("file.delete", file_id)


async def test_deleting_answers_as_openai_does_and_once(files_app: FilesApp) -> None:
    file_id = await files_app.made()
    answer = await files_app.http.delete(f"/v1/files/{file_id}")
    assert answer.json() == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("DELETE", ""), ("GET", ""), ("GET", "/content")):
        gone = await files_app.http.request(method, f"/v1/files/{file_id}{path}")
        assert (gone.status_code, error_of(gone)["code"]) == (404, "file_not_found")
    assert await files_app.listed() == []
    assert files_app.on_disk() == set()


async def test_a_deletion_that_is_saved_is_answered_though_the_bytes_stay(
    files_app: FilesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await files_app.made()

    def no_room(_: object) -> None:
        raise DiskFull("the disk is full; nothing was changed")

    with monkeypatch.context() as patch:
        patch.setattr(holds, "release_unheld", no_room)
        assert (await files_app.http.delete(f"/v1/files/{file_id}")).json()["deleted"]
    assert (await files_app.listed(), files_app.on_disk()) == ([], {file_id})
    await files_app.files.collect()
    assert files_app.on_disk() == set()


async def test_a_file_leaves_the_list_when_it_expires_and_its_bytes_with_it(
    files_app: FilesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = (await files_app.put(**expiry)).json()
    assert made["expires_at"] == made["created_at"] + 3600
    stays = await files_app.made()
    now = made["created_at"]  # however long ago that is by now
    for later, expected in ((3590, {made["id"], stays}), (3700, {stays})):
        monkeypatch.setattr("service.files.records.now", lambda later=later: now + later)
        monkeypatch.setattr("service.files.holds.now", lambda later=later: now + later)
        await files_app.files.collect()
        assert set(await files_app.listed()) == expected
        assert files_app.on_disk() == expected
    assert (await files_app.http.get(f"/v1/files/{made['id']}")).status_code == 404


async def test_bytes_that_nobody_needs_go_without_being_asked(
    files_app: FilesApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await files_app.made()
    await files_app.database.run(lambda db: records.delete(db, file_id))
    monkeypatch.setattr("service.files.service.SWEEP_S", 0.01)
    again = Files(files_app.root, files_app.database, max_file_bytes=1, max_project_bytes=1)
    await again.open()
    try:
        await until(lambda: not files_app.on_disk())
    finally:
        await again.close()
