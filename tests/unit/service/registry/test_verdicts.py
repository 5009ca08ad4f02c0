"""Verdicts on versions: who may write one down, what it holds, and how its history is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from service.files.holds import release_unheld
from service.files.tables import file_holds, files
from service.registry import verdicts as verdicts_module
from service.registry.tables import verdicts
from tests.support.adapters import AdapterFiles
from tests.unit.service.registry.conftest import RegistryApp

Files = Callable[..., AdapterFiles]
EVALUATION = {"model": "voice@1", "held_out": "file-held", "metric": "exact_match", "suites": ["general"]}


async def held(registry_app: RegistryApp) -> list[tuple[str, str]]:
    """(holder, file) of all holds of versions."""
    chosen = sa.select(file_holds.c.holder, file_holds.c.file_id).where(file_holds.c.kind == "version")
    found = await registry_app.database.run(lambda db: db.execute(chosen).all())
    return sorted((row.holder, row.file_id) for row in found)


async def test_a_version_shows_its_latest_verdict_and_its_history_is_kept(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push("voice", files(seed=1))
    before = await registry_app.version("voice@1")
    assert (before["verdict"], before["revalidation"]) == (None, None)

    first = await registry_app.verdict("voice@1", "not_enough_evidence", kind="training", examples=10)
    assert first.status_code == 201, first.text
    second = await registry_app.verdict("voice@1", "pass", evaluation_id="eval-1", evaluation=EVALUATION)
    shown = second.json()
    assert shown.pop("evaluation") == EVALUATION
    assert shown["base"] == registry_app.base.fingerprint.model_dump()
    assert (shown["object"], shown["adapter"], shown["version"]) == ("adapter.verdict", "voice", 1)
    assert (shown["verdict"], shown["kind"], shown["evaluation_id"], shown["key_id"]) == (
        *("pass", "evaluation", "eval-1"),
        "admin",
    )

    version = await registry_app.version("voice@1")
    assert version["verdict"] == shown
    assert version["revalidation"] == {"state": "fresh", "reasons": []}
    listed = (await registry_app.http.get("/v1/adapters")).json()["data"][0]["versions"][0]
    assert listed == version

    page = (await registry_app.http.get("/v1/adapters/voice/versions/1/verdicts?limit=1")).json()
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, shown["id"])
    assert page["data"] == [second.json()]
    rest = (await registry_app.http.get(f"/v1/adapters/voice/versions/1/verdicts?after={page['last_id']}")).json()
    assert (rest["data"], rest["has_more"]) == ([first.json()], False)
    unknown = await registry_app.http.get("/v1/adapters/voice/versions/1/verdicts?after=verdict-none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")


async def test_jobs_and_admins_write_verdicts_and_nobody_else(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    person = await registry_app.verdict("voice@1", headers=await registry_app.key())
    assert (person.status_code, person.json()["error"]["code"]) == (403, "job_key_needed")
    told = await registry_app.verdict("voice@1", headers=await registry_app.job_key())
    assert told.status_code == 201
    assert (
        await registry_app.verdict("voice@1", headers=await registry_app.job_key(adapters=("voi*",)))
    ).status_code == 201
    missing = await registry_app.verdict("voice@1", headers=await registry_app.job_key("acme"))
    other = await registry_app.verdict("voice@1", headers=await registry_app.job_key(adapters=("other",)))
    assert [answer.status_code for answer in (missing, other)] == [404, 404]
    assert missing.json() == other.json()
    assert len((await registry_app.http.get("/v1/adapters/voice/versions/1/verdicts")).json()["data"]) == 2


async def test_a_job_that_tells_its_verdict_twice_has_told_it_once(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    key = await registry_app.job_key()
    told = [await registry_app.verdict("voice@1", headers=key) for _ in range(2)]
    assert told[0].json()["id"] == told[1].json()["id"]
    assert [row.action for row in await registry_app.audit()].count("version.verdict") == 1
    other = [
        await registry_app.verdict("voice@1", "fail", headers=key),
        await registry_app.verdict("voice@1", "fail", headers=await registry_app.job_key()),
    ]
    assert len({answer.json()["id"] for answer in (*told, *other)}) == 3


async def test_a_verdict_is_noted_in_the_audit(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    made = (await registry_app.verdict("voice@1", "fail", kind="revalidation", evaluation_id="eval-9")).json()
    last = (await registry_app.audit())[-1]
    assert (last.action, last.target, last.key_id) == ("version.verdict", "voice@1", "admin")
    assert last.detail == {"id": made["id"], "verdict": "fail", "kind": "revalidation", "evaluation": "eval-9"}


async def test_a_version_holds_what_it_was_judged_on_as_long_as_it_lives(
    registry_app: RegistryApp, files: Files
) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.push("voice", files(seed=2))
    held_out, report = await registry_app.file("file-held"), await registry_app.file("file-report")
    made = await registry_app.verdict("voice@1", files={"held_out": held_out, "report": report})
    assert made.json()["files"] == {"held_out": held_out, "report": report}
    assert await held(registry_app) == [("voice@1", held_out), ("voice@1", report)]

    await registry_app.database.run(lambda db: db.execute(files_off_the_list()))
    assert await registry_app.database.run(release_unheld) == []
    again = await registry_app.verdict("voice@1", kind="revalidation", files={"held_out": held_out})
    assert again.status_code == 201, "what the version holds can be named again"
    elsewhere = await registry_app.verdict("voice@2", files={"held_out": held_out})
    assert (elsewhere.status_code, elsewhere.json()["error"]["param"]) == (404, "files.held_out")

    await registry_app.http.delete("/v1/adapters/voice/versions/1?force=true")
    assert await held(registry_app) == []
    assert sorted(await registry_app.database.run(release_unheld)) == [held_out, report]
    assert await registry_app.database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(verdicts))) == 0


def files_off_the_list() -> sa.Update:
    return files.update().values(deleted_at=1)


async def test_a_deleted_adapter_takes_its_verdicts_along(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.verdict("voice@1")
    assert (await registry_app.http.delete("/v1/adapters/voice?force=true")).status_code == 204
    assert await registry_app.database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(verdicts))) == 0


async def test_a_file_of_another_project_is_one_that_does_not_exist(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    await registry_app.key("acme")
    theirs = await registry_app.file("file-theirs", "acme")
    mine = await registry_app.file("file-mine")
    named = await registry_app.verdict("voice@1", files={"held_out": mine, "page": theirs})
    absent = await registry_app.verdict("voice@1", files={"held_out": mine, "page": "file-nobody"})
    assert named.status_code == absent.status_code == 404
    assert named.json()["error"]["code"] == "file_not_found"
    assert named.text.replace(theirs, "X") == absent.text.replace("file-nobody", "X")
    assert await held(registry_app) == [], "nothing is held of a verdict that was refused"
    assert (await registry_app.version("voice@1"))["verdict"] is None


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"verdict": "maybe"}, 400, "verdict"),
        ({"kind": "guess"}, 400, "kind"),
        ({"sentence": ""}, 400, "sentence"),
        ({"sentence": "x" * 4001}, 400, "sentence"),
        ({"metric": None}, 400, "metric"),
        ({"examples": -1}, 400, "examples"),
        ({"examples": "40"}, 400, "examples"),
        ({"files": {"weights": "file-1"}}, 400, "files.weights"),
        ({"files": {"report": 7}}, 400, "files.report"),
        ({"evaluation": []}, 400, "evaluation"),
        ({"evaluation": {"text": "x" * 66_000}}, 400, "evaluation"),
        ({"evaluation": {"text": "x" * 140_000}}, 413, None),
        ({"colour": "red"}, 400, "colour"),
    ],
)
async def test_the_body_of_a_verdict_is_checked(
    registry_app: RegistryApp, files: Files, change: dict[str, Any], status: int, param: str | None
) -> None:
    await registry_app.push("voice", files(seed=1))
    answer = await registry_app.verdict("voice@1", **{"verdict": "pass"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_evaluation_that_is_nested_too_deeply_is_refused(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    answer = await registry_app.verdict("voice@1", evaluation=deep)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "evaluation")


async def test_only_a_ready_version_is_judged(registry_app: RegistryApp, files: Files) -> None:
    await registry_app.push("voice", files(seed=1))
    registry_app.engine.effect = 0.0
    rejected = await registry_app.push("voice", files(seed=2), query="?wait=false")
    await registry_app.registry.wait_idle()
    assert (await registry_app.version("voice@2"))["state"] == "rejected", rejected.text
    answer = await registry_app.verdict("voice@2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")
    assert (await registry_app.verdict("voice@3")).json()["error"]["code"] == "version_not_found"


async def test_a_versions_verdicts_are_bounded(
    registry_app: RegistryApp, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts_module, "MAX_VERDICTS", 2)
    await registry_app.push("voice", files(seed=1))
    codes = [(await registry_app.verdict("voice@1")).status_code for _ in range(3)]
    assert codes == [201, 201, 409]
