"""Datasets: names, numbers, what a version holds, who sees what, and what may be deleted."""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.database import metadata
from tests.unit.service.datasets.datasets_app import DatasetsApp, rows
from tests.unit.service.files.files_app import LINE, bearer, error_of

FIRST, SECOND = rows(("a", "1"), ("b", "2")), rows(("a", "1"), ("b", "2"), ("c", "3"))


async def test_a_name_has_numbered_versions_each_with_its_file(app: DatasetsApp) -> None:
    one = await app.pushed("support", FIRST, note="the first tickets")
    two = await app.pushed("support", SECOND)
    assert one == {
        "object": "dataset.version",
        "dataset": "support",
        "version": 1,
        "file": one["file"],
        "sha256": hashlib.sha256(FIRST).hexdigest(),
        "bytes": len(FIRST),
        "rows": 2,
        "note": "the first tickets",
        "key_id": "admin",
        "created_at": one["created_at"],
        "unchanged": False,
    }
    assert (two["version"], two["rows"], two["note"]) == (2, 3, None)
    shown = (await app.get("/support")).json()
    assert (shown["object"], shown["name"], shown["latest"]) == ("dataset", "support", 2)
    assert [version["file"] for version in shown["versions"]] == [one["file"], two["file"]]
    version = (await app.get("/support/versions/1")).json()
    assert version == {name: value for name, value in one.items() if name != "unchanged"}
    audit = (await app.http.get("/v1/audit?action=dataset.push")).json()["data"]
    assert [entry["target"] for entry in audit] == ["support@2", "support@1"]


async def test_the_bytes_of_the_latest_version_make_no_new_one(app: DatasetsApp) -> None:
    one = await app.pushed("support", FIRST)
    again = await app.push("support", FIRST, note="the same")
    assert (again.status_code, again.json()) == (200, one | {"unchanged": True})
    assert again.headers["location"] == "/v1/datasets/support/versions/1"
    assert (await app.pushed("support", SECOND))["version"] == 2
    back = await app.pushed("support", FIRST)  # an earlier version's bytes are new again
    assert back["version"] == 3
    assert len((await app.get("/support")).json()["versions"]) == 3


async def test_one_file_may_be_two_versions(app: DatasetsApp) -> None:
    one = await app.pushed("support", FIRST)
    body = {"name": "returns", "file": one["file"]}
    assert (await app.http.post("/v1/datasets", json=body)).status_code == 201
    assert (await app.delete("/v1/datasets/support")).status_code == 204
    refused = await app.delete(f"/v1/files/{one['file']}")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "file_in_use")
    assert "`returns@1`" in error_of(refused)["message"]


async def test_a_file_stays_as_long_as_a_version_is_it(app: DatasetsApp) -> None:
    one, two = await app.pushed("support", FIRST), await app.pushed("support", SECOND)
    for version in (one, two):
        refused = await app.delete(f"/v1/files/{version['file']}")
        assert (refused.status_code, error_of(refused)["param"]) == (409, "file_id")
        assert f"`support@{version['version']}`" in error_of(refused)["message"]
    assert (await app.delete("/v1/datasets/support/versions/1")).status_code == 204
    assert (await app.delete(f"/v1/files/{one['file']}")).status_code == 200
    assert app.on_disk() == {two["file"]}
    assert (await app.get("/support/versions/1")).status_code == 404
    assert (await app.get("/support")).json()["latest"] == 2


async def test_a_number_is_never_given_twice(app: DatasetsApp) -> None:
    await app.pushed("support", FIRST)
    assert (await app.delete("/v1/datasets/support/versions/1")).status_code == 204
    assert error_of(await app.get("/support"))["code"] == "dataset_not_found"
    assert (await app.get("")).json()["data"] == []
    assert (await app.pushed("support", FIRST))["version"] == 2
    assert (await app.delete("/v1/datasets/support")).status_code == 204
    assert (await app.delete("/v1/datasets/support")).status_code == 404
    assert (await app.pushed("support", SECOND))["version"] == 3
    deleted = (await app.http.get("/v1/audit?action=dataset.delete")).json()["data"]
    assert [entry["target"] for entry in deleted] == ["support@2", "support@1"]


REFUSED: tuple[tuple[dict[str, Any], int, str, str], ...] = (
    ({"name": "Support"}, 400, "name_invalid", "name"),
    ({"name": "support@2"}, 400, "invalid_value", "name"),
    ({"name": "support:live"}, 400, "name_invalid", "name"),
    ({"name": "file-a"}, 400, "name_reserved", "name"),
    ({"name": "a" * 64}, 400, "name_reserved", "name"),
    ({"name": 3}, 400, "invalid_value", "name"),
    ({"name": None}, 400, "invalid_value", "name"),
    ({"note": ""}, 400, "invalid_value", "note"),
    ({"note": "x" * 501}, 400, "invalid_value", "note"),
    ({"colour": "red"}, 400, "unknown_parameter", "colour"),
    ({"file": "file-" + "0" * 24}, 404, "file_not_found", "file"),
)


async def test_a_push_that_is_refused_changes_nothing(app: DatasetsApp) -> None:
    valid = {"name": "support", "file": await app.made(FIRST)}
    for body, status, code, param in REFUSED:
        answer = await app.http.post("/v1/datasets", json=valid | body)
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), body
        assert "adapter" not in error["message"]
    assert (await app.get("")).json()["data"] == []


async def test_a_version_is_a_training_file_that_does_not_expire(app: DatasetsApp) -> None:
    evals = await app.made(FIRST, "evals")
    answer = await app.http.post("/v1/datasets", json={"name": "support", "file": evals})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "file")
    expires = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    leaving = await app.made(FIRST, **expires)
    answer = await app.http.post("/v1/datasets", json={"name": "support", "file": leaving})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "file")
    assert "expires" in error_of(answer)["message"]


async def test_pages_are_oldest_first(app: DatasetsApp) -> None:
    for name in ("c", "a", "b"):
        await app.pushed(name, FIRST)
    page = (await app.get("", limit=2)).json()
    assert ([entry["name"] for entry in page["data"]], page["has_more"], page["last_id"]) == (["c", "a"], True, "a")
    rest = (await app.get("", after="a")).json()
    assert ([entry["name"] for entry in rest["data"]], rest["has_more"]) == (["b"], False)
    refused = await app.get("", after="d")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "after")


async def test_what_does_not_exist_is_not_found(app: DatasetsApp) -> None:
    await app.pushed("support", FIRST)
    for path, code in {
        "/nobody": "dataset_not_found",
        "/No Name": "dataset_not_found",
        "/nobody/versions/1": "dataset_not_found",
        "/support/versions/9": "dataset_version_not_found",
        "/support/versions/0": "dataset_version_not_found",
        "/support/versions/x": "dataset_version_not_found",
        "/support/versions/99999999999999999999": "dataset_version_not_found",
        "/support/versions/9/diff?against=1": "dataset_version_not_found",
        "/support/versions/1/diff?against=9": "dataset_version_not_found",
    }.items():
        answer = await app.http.get(f"/v1/datasets{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, code), path


async def test_projects_share_no_datasets(app: DatasetsApp) -> None:
    theirs, ours = await app.key("train", project="acme"), await app.key("train")
    mine = await app.pushed("support", FIRST, key=ours)
    assert (await app.get("", theirs)).json()["data"] == []
    for path in ("/support", "/support/versions/1", "/support/versions/1/diff?against=1"):
        answer = await app.http.get(f"/v1/datasets{path}", headers=bearer(theirs))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "dataset_not_found")
    for path in ("/support", "/support/versions/1"):
        assert (await app.delete(f"/v1/datasets{path}", theirs)).status_code == 404
    stolen = await app.http.post("/v1/datasets", json={"name": "x", "file": mine["file"]}, headers=bearer(theirs))
    assert (stolen.status_code, error_of(stolen)["param"]) == (404, "file")
    assert (await app.pushed("support", SECOND, key=theirs))["version"] == 1  # numbers are the project's own
    assert (await app.get("/support", ours)).json()["latest"] == 1
    assert (await app.delete("/v1/datasets/support", theirs)).status_code == 204
    assert (await app.get("/support/versions/1", ours)).json()["file"] == mine["file"]


async def test_datasets_need_the_scope_train(app: DatasetsApp) -> None:
    await app.pushed("support", FIRST)
    key = await app.key("infer", "adapters", "knowledge")
    for method, path in (
        *(("GET", ""), ("POST", ""), ("GET", "/support"), ("DELETE", "/support"), ("GET", "/support/versions/1")),
        *(("DELETE", "/support/versions/1"), ("GET", "/support/versions/1/diff?against=1")),
    ):
        answer = await app.http.request(method, f"/v1/datasets{path}", headers=bearer(key))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")


async def test_a_key_with_globs_uses_the_datasets_that_they_match(app: DatasetsApp) -> None:
    narrow = await app.key("train", adapters=["shop-*"])
    theirs, shop = await app.pushed("support", FIRST), await app.pushed("shop-data", SECOND)
    assert [entry["name"] for entry in (await app.get("", narrow)).json()["data"]] == ["shop-data"]
    assert (await app.get("/support", narrow)).status_code == 404
    assert (await app.delete("/v1/datasets/support", narrow)).status_code == 404
    content = [f"/v1/files/{version['file']}/content" for version in (theirs, shop)]
    statuses = [(await app.http.get(path, headers=bearer(narrow))).status_code for path in content]
    assert statuses == [404, 200]
    refused = await app.push("support", LINE, key=narrow)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "dataset_not_allowed")
    assert (await app.push("nobody", LINE, key=narrow)).json() == refused.json() | {
        "error": error_of(refused) | {"message": error_of(refused)["message"].replace("support", "nobody")}
    }
    assert (await app.pushed("shop-data", LINE, key=narrow))["version"] == 2
    own = await app.made(LINE * 2, key=narrow)
    assert (await app.http.post("/v1/datasets", json={"name": "secret", "file": own})).status_code == 201
    in_use = await app.delete(f"/v1/files/{own}", narrow)
    assert in_use.status_code == 409
    assert "secret" not in in_use.text


async def test_what_a_job_in_progress_reads_is_not_deleted(app: DatasetsApp) -> None:
    one = await app.pushed("support", FIRST)
    await app.pushed("support", SECOND)
    key_id, key = await app.job_key()
    await app.files.hold("default", key_id, {"training_file": one["file"]})
    for path in ("/support/versions/1", "/support"):
        refused = await app.delete(f"/v1/datasets{path}")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "dataset_in_use")
        assert "`support@1`" in error_of(refused)["message"]
    assert len((await app.get("/support")).json()["versions"]) == 2
    assert (await app.delete("/v1/datasets/support/versions/2")).status_code == 204
    assert (await app.http.delete("/v1/keys/current", headers=bearer(key))).status_code == 200
    assert (await app.delete("/v1/datasets/support")).status_code == 204


async def test_a_job_s_own_key_changes_no_datasets(app: DatasetsApp) -> None:
    await app.pushed("support", FIRST)
    _, key = await app.job_key()
    assert (await app.get("/support", key)).status_code == 200
    answers = [await app.push("support", SECOND, key=key), await app.delete("/v1/datasets/support", key)]
    answers.append(await app.delete("/v1/datasets/support/versions/1", key))
    assert [(answer.status_code, error_of(answer)["code"]) for answer in answers] == [(403, "job_key")] * 3


async def test_the_migration_makes_the_tables_that_the_code_uses(app: DatasetsApp) -> None:
    ours = ("projects", "files", "datasets", "dataset_versions")

    def differences(db: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name in ours, "compare_type": True}
        )
        subset = sa.MetaData(naming_convention=metadata.naming_convention)
        for name in ours:
            metadata.tables[name].to_metadata(subset)
        return list(compare_metadata(context, subset))

    assert await app.database.run(differences) == []
