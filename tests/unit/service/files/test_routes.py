"""Who sees which files, in which order, and that another project's are like none."""

from __future__ import annotations

from typing import Any

import pytest

from service.files import records
from service.files.service import Files
from tests.unit.service.files.cabinet import LINE, Cabinet, bearer, error_of
from tests.unit.service.inference.fakes import until

NOBODYS = "file-" + "0" * 24


async def test_a_list_has_every_file_once_in_either_order(cabinet: Cabinet) -> None:
    made = [await cabinet.made(b"x", purpose) for purpose in ("evals", "user_data", "evals", "assistants")]
    assert await cabinet.listed() == made[::-1]
    assert await cabinet.listed(order="asc") == made
    assert await cabinet.listed(purpose="evals") == [made[2], made[0]]
    for order in ("asc", "desc"):
        seen: list[str] = []
        more = True
        while more:
            query: dict[str, Any] = {"limit": 3, "order": order} | ({"after": seen[-1]} if seen else {})
            page = (await cabinet.http.get("/v1/files", params=query)).json()
            ids = [item["id"] for item in page["data"]]
            assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[0], ids[-1])
            seen, more = seen + ids, page["has_more"]
        assert seen == (made if order == "asc" else made[::-1])


async def test_a_deleted_file_still_marks_its_place(cabinet: Cabinet) -> None:
    made = [await cabinet.made() for _ in range(3)]
    await cabinet.http.delete(f"/v1/files/{made[1]}")
    assert await cabinet.listed(after=made[1]) == [made[0]]


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"purpose": "batch"}, {"after": NOBODYS}]
)
async def test_a_wrong_query_is_named(cabinet: Cabinet, query: dict[str, Any]) -> None:
    answer = await cabinet.http.get("/v1/files", params=query)
    assert (answer.status_code, error_of(answer)["param"]) == (400, next(iter(query)))


async def test_documents_need_knowledge_or_train_and_the_rest_train(cabinet: Cabinet) -> None:
    keys = {scope: await cabinet.key(scope) for scope in ("infer", "adapters", "knowledge", "train")}
    made = {purpose: await cabinet.made(LINE, purpose) for purpose in ("fine-tune", "evals", "assistants", "user_data")}
    documents = {made["assistants"], made["user_data"]}
    assert set(await cabinet.listed(keys["train"])) == set(made.values())
    assert set(await cabinet.listed(keys["knowledge"])) == documents
    for purpose, file_id in made.items():
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
            assert (await cabinet.http.get(path, headers=bearer(keys["train"]))).status_code == 200
            seen = await cabinet.http.get(path, headers=bearer(keys["knowledge"]))
            assert seen.status_code == (200 if file_id in documents else 404)
        put = await cabinet.put(LINE, purpose, key=keys["knowledge"])
        assert put.status_code == (200 if file_id in documents else 403)
        assert put.status_code == 200 or "`train`" in error_of(put)["message"]
    refused = await cabinet.http.get("/v1/files?purpose=evals", headers=bearer(keys["knowledge"]))
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
    deleted = await cabinet.http.delete(f"/v1/files/{made['evals']}", headers=bearer(keys["knowledge"]))
    assert deleted.status_code == 404


@pytest.mark.parametrize("scope", ["infer", "adapters"])
async def test_a_key_without_either_scope_learns_nothing_about_its_body(cabinet: Cabinet, scope: str) -> None:
    key = await cabinet.key(scope)
    file_id = await cabinet.made()
    for method, path in (
        ("POST", "/v1/files"),
        ("GET", "/v1/files?limit=0"),
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
    ):
        answer = await cabinet.http.request(method, path, content=b"no form at all", headers=bearer(key))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope"), path
        assert "`train`" in error_of(answer)["message"]


async def test_another_project_s_file_is_like_none(cabinet: Cabinet) -> None:
    file_id, other = await cabinet.made(), await cabinet.key("train", project="other")
    assert await cabinet.listed(other) == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answers = [
            await cabinet.http.request(method, f"/v1/files/{asked}{path}", headers=bearer(other))
            for asked in (file_id, NOBODYS)
        ]
        found, never = (
            (a.status_code, a.text.replace(asked, "ID")) for a, asked in zip(answers, (file_id, NOBODYS), strict=True)
        )
        assert found == never
        assert found[0] == 404
    after = [
        (await cabinet.http.get("/v1/files", params={"after": asked}, headers=bearer(other))).text
        for asked in (file_id, NOBODYS)
    ]
    assert after[0] == after[1]
    assert await cabinet.listed() == [file_id]


async def test_results_are_written_by_jobs_alone(cabinet: Cabinet) -> None:
    _, job = await cabinet.job_key()
    made = await cabinet.put(b"step,loss\n", "fine-tune-results", key=job)
    assert made.json()["purpose"] == "fine-tune-results"
    assert await cabinet.listed(purpose="fine-tune-results") == [made.json()["id"]]
    assert (await cabinet.put(b"step,loss\n", "fine-tune-results")).status_code == 403


async def test_changes_are_in_the_audit(cabinet: Cabinet) -> None:
    file_id = await cabinet.made(name="voices.jsonl")
    await cabinet.http.delete(f"/v1/files/{file_id}")
    entries = (await cabinet.http.get("/v1/audit")).json()["data"]
    deleted, created = entries[:2]
    assert (created["action"], created["target"], created["key_id"]) == ("file.create", file_id, "admin")
    assert created["detail"]["filename"] == "voices.jsonl"
    assert created["detail"]["bytes"] == len(LINE)
    assert (deleted["action"], deleted["target"]) == ("file.delete", file_id)


async def test_deleting_answers_as_openai_does_and_once(cabinet: Cabinet) -> None:
    file_id = await cabinet.made()
    answer = await cabinet.http.delete(f"/v1/files/{file_id}")
    assert answer.json() == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("DELETE", ""), ("GET", ""), ("GET", "/content")):
        gone = await cabinet.http.request(method, f"/v1/files/{file_id}{path}")
        assert (gone.status_code, error_of(gone)["code"]) == (404, "file_not_found")
    assert await cabinet.listed() == []
    assert cabinet.on_disk() == set()


async def test_a_file_leaves_the_list_when_it_expires_and_its_bytes_with_it(
    cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = (await cabinet.put(**expiry)).json()
    assert made["expires_at"] == made["created_at"] + 3600
    stays = await cabinet.made()
    now = made["created_at"]  # however long ago that is by now
    for later, expected in ((3590, {made["id"], stays}), (3700, {stays})):
        monkeypatch.setattr("service.files.records.now", lambda later=later: now + later)
        monkeypatch.setattr("service.files.holds.now", lambda later=later: now + later)
        await cabinet.files.collect()
        assert set(await cabinet.listed()) == expected
        assert cabinet.on_disk() == expected
    assert (await cabinet.http.get(f"/v1/files/{made['id']}")).status_code == 404


async def test_bytes_that_nobody_needs_go_without_being_asked(
    cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = await cabinet.made()
    await cabinet.database.run(lambda db: records.delete(db, file_id))
    monkeypatch.setattr("service.files.service.SWEEP_S", 0.01)
    again = Files(cabinet.root, cabinet.database, max_file_bytes=1, max_project_bytes=1)
    await again.open()
    try:
        await until(lambda: not cabinet.on_disk())
    finally:
        await again.close()
