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
from tests.unit.service.registry.conftest import Bench

Files = Callable[..., AdapterFiles]
EVALUATION = {"model": "voice@1", "held_out": "file-held", "metric": "exact_match", "suites": ["general"]}


async def held(bench: Bench) -> list[tuple[str, str]]:
    """(holder, file) of all holds of versions."""
    chosen = sa.select(file_holds.c.holder, file_holds.c.file_id).where(file_holds.c.kind == "version")
    found = await bench.database.run(lambda db: db.execute(chosen).all())
    return sorted((row.holder, row.file_id) for row in found)


async def test_a_version_shows_its_latest_verdict_and_its_history_is_kept(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    before = await bench.version("voice@1")
    assert (before["verdict"], before["revalidation"]) == (None, None)

    first = await bench.verdict("voice@1", "not_enough_evidence", kind="training", examples=10)
    assert first.status_code == 201, first.text
    second = await bench.verdict("voice@1", "pass", evaluation_id="eval-1", evaluation=EVALUATION)
    shown = second.json()
    assert shown.pop("evaluation") == EVALUATION
    assert shown["base"] == bench.base.fingerprint.model_dump()
    assert (shown["object"], shown["adapter"], shown["version"]) == ("adapter.verdict", "voice", 1)
    assert (shown["verdict"], shown["kind"], shown["evaluation_id"], shown["key_id"]) == (
        *("pass", "evaluation", "eval-1"),
        "admin",
    )

    version = await bench.version("voice@1")
    assert version["verdict"] == shown
    assert version["revalidation"] == {"state": "fresh", "reasons": []}
    listed = (await bench.http.get("/v1/adapters")).json()["data"][0]["versions"][0]
    assert listed == version

    page = (await bench.http.get("/v1/adapters/voice/versions/1/verdicts?limit=1")).json()
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, shown["id"])
    assert page["data"] == [second.json()]
    rest = (await bench.http.get(f"/v1/adapters/voice/versions/1/verdicts?after={page['last_id']}")).json()
    assert (rest["data"], rest["has_more"]) == ([first.json()], False)
    unknown = await bench.http.get("/v1/adapters/voice/versions/1/verdicts?after=verdict-none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "after")


async def test_jobs_and_admins_write_verdicts_and_nobody_else(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    person = await bench.verdict("voice@1", headers=await bench.key())
    assert (person.status_code, person.json()["error"]["code"]) == (403, "job_key_needed")
    told = await bench.verdict("voice@1", headers=await bench.job_key())
    assert told.status_code == 201
    assert (await bench.verdict("voice@1", headers=await bench.job_key(adapters=("voi*",)))).status_code == 201
    missing = await bench.verdict("voice@1", headers=await bench.job_key("acme"))
    other = await bench.verdict("voice@1", headers=await bench.job_key(adapters=("other",)))
    assert [answer.status_code for answer in (missing, other)] == [404, 404]
    assert missing.json() == other.json()
    assert len((await bench.http.get("/v1/adapters/voice/versions/1/verdicts")).json()["data"]) == 2


async def test_a_job_that_tells_its_verdict_twice_has_told_it_once(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    key = await bench.job_key()
    told = [await bench.verdict("voice@1", headers=key) for _ in range(2)]
    assert told[0].json()["id"] == told[1].json()["id"]
    assert [row.action for row in await bench.audit()].count("version.verdict") == 1
    other = [
        await bench.verdict("voice@1", "fail", headers=key),
        await bench.verdict("voice@1", "fail", headers=await bench.job_key()),
    ]
    assert len({answer.json()["id"] for answer in (*told, *other)}) == 3


async def test_a_verdict_is_noted_in_the_audit(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    made = (await bench.verdict("voice@1", "fail", kind="revalidation", evaluation_id="eval-9")).json()
    last = (await bench.audit())[-1]
    assert (last.action, last.target, last.key_id) == ("version.verdict", "voice@1", "admin")
    assert last.detail == {"id": made["id"], "verdict": "fail", "kind": "revalidation", "evaluation": "eval-9"}


async def test_a_version_holds_what_it_was_judged_on_as_long_as_it_lives(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    await bench.push("voice", files(seed=2))
    held_out, report = await bench.file("file-held"), await bench.file("file-report")
    made = await bench.verdict("voice@1", files={"held_out": held_out, "report": report})
    assert made.json()["files"] == {"held_out": held_out, "report": report}
    assert await held(bench) == [("voice@1", held_out), ("voice@1", report)]

    await bench.database.run(lambda db: db.execute(files_off_the_list()))
    assert await bench.database.run(release_unheld) == []
    again = await bench.verdict("voice@1", kind="revalidation", files={"held_out": held_out})
    assert again.status_code == 201, "what the version holds can be named again"
    elsewhere = await bench.verdict("voice@2", files={"held_out": held_out})
    assert (elsewhere.status_code, elsewhere.json()["error"]["param"]) == (404, "files.held_out")

    await bench.http.delete("/v1/adapters/voice/versions/1?force=true")
    assert await held(bench) == []
    assert sorted(await bench.database.run(release_unheld)) == [held_out, report]
    assert await bench.database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(verdicts))) == 0


def files_off_the_list() -> sa.Update:
    return files.update().values(deleted_at=1)


async def test_a_deleted_adapter_takes_its_verdicts_along(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    await bench.verdict("voice@1")
    assert (await bench.http.delete("/v1/adapters/voice?force=true")).status_code == 204
    assert await bench.database.run(lambda db: db.scalar(sa.select(sa.func.count()).select_from(verdicts))) == 0


async def test_a_file_of_another_project_is_one_that_does_not_exist(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    await bench.key("acme")
    theirs = await bench.file("file-theirs", "acme")
    mine = await bench.file("file-mine")
    named = await bench.verdict("voice@1", files={"held_out": mine, "page": theirs})
    absent = await bench.verdict("voice@1", files={"held_out": mine, "page": "file-nobody"})
    assert named.status_code == absent.status_code == 404
    assert named.json()["error"]["code"] == "file_not_found"
    assert named.text.replace(theirs, "X") == absent.text.replace("file-nobody", "X")
    assert await held(bench) == [], "nothing is held of a verdict that was refused"
    assert (await bench.version("voice@1"))["verdict"] is None


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
    bench: Bench, files: Files, change: dict[str, Any], status: int, param: str | None
) -> None:
    await bench.push("voice", files(seed=1))
    answer = await bench.verdict("voice@1", **{"verdict": "pass"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_an_evaluation_that_is_nested_too_deeply_is_refused(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    answer = await bench.verdict("voice@1", evaluation=deep)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "evaluation")


async def test_only_a_ready_version_is_judged(bench: Bench, files: Files) -> None:
    await bench.push("voice", files(seed=1))
    bench.engine.effect = 0.0
    rejected = await bench.push("voice", files(seed=2), query="?wait=false")
    await bench.registry.wait_idle()
    assert (await bench.version("voice@2"))["state"] == "rejected", rejected.text
    answer = await bench.verdict("voice@2")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")
    assert (await bench.verdict("voice@3")).json()["error"]["code"] == "version_not_found"


async def test_a_versions_verdicts_are_bounded(bench: Bench, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts_module, "MAX_VERDICTS", 2)
    await bench.push("voice", files(seed=1))
    codes = [(await bench.verdict("voice@1")).status_code for _ in range(3)]
    assert codes == [201, 201, 409]
