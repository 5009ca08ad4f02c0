"""Versions judged again: what is asked of the trainer, by whom, and how often."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from adapters.base import BaseDescription
from service.access.audit import SYSTEM
from service.access.caller import Scope
from service.access.records import KeyDraft
from service.files import records as file_records
from service.files.purposes import Purpose
from service.files.records import NewFile
from service.files.tables import file_holds
from service.files.tables import files as file_table
from service.training import revalidation as revalidation_module
from service.training.revalidation import revalidation_body
from tests.unit.service.training.revalidation_app import EVALUATION, HELD_OUT, RevalidationApp, judge

REVALIDATE = "/v1/adapters/voice/versions/1/revalidate"


async def key_of(
    revalidation_app: RevalidationApp, *scopes: Scope, project: str = "default", **more: Any
) -> dict[str, str]:
    _, key = await revalidation_app.keys.mint(SYSTEM, KeyDraft("a key", project, frozenset(scopes), **more))
    return {"authorization": f"Bearer {key}"}


ALL_SCOPES = (Scope.TRAIN, Scope.INFER, Scope.ADAPTERS)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_same_is_asked_for_of_the_same_version_and_promotes_nothing() -> None:
    body = {
        "model": "voice:live",
        "held_out": "file-1",
        "promote": "auto",
        "kind": "evaluation",
        "metadata": {"revalidates": "x@9", "a": "b"},
    }
    assert revalidation_body(body, "voice@3") == {
        "model": "voice@3",
        "held_out": "file-1",
        "promote": "never",
        "metadata": {"a": "b", "revalidates": "voice@3"},
    }
    arms = {"arms": [{"label": "new", "model": "voice@3"}], "candidate": "new", "held_out": "file-1"}
    assert revalidation_body(arms, "voice@3")["arms"] == arms["arms"]
    assert "model" not in revalidation_body(arms, "voice@3")
    full = revalidation_body({"model": "voice", "metadata": {str(number): "x" for number in range(16)}}, "voice@3")
    assert len(full["metadata"]) == 16
    assert full["metadata"]["revalidates"] == "voice@3"


async def test_one_version_is_judged_again_though_nothing_has_changed(revalidation_app: RevalidationApp) -> None:
    async with revalidation_app.here():
        answer = await revalidation_app.http.post("/v1/adapters/ant/versions/1/revalidate")
    assert (answer.status_code, answer.json()["id"]) == (200, "eval-1")
    [body] = revalidation_app.evaluations.requests
    assert (body["model"], body["kind"], body["held_out"]) == ("ant@1", "revalidation", HELD_OUT)
    headers = revalidation_app.evaluations.headers[0]
    assert (headers["x-hatrack-project"], headers["x-hatrack-key-id"]) == ("default", "admin")


async def test_the_body_that_is_repeated_is_that_of_the_latest_verdict_that_has_one(
    revalidation_app: RevalidationApp,
) -> None:
    await revalidation_app.verdict("voice@1", evaluation=EVALUATION | {"metric": "contains"})
    await revalidation_app.verdict("voice@1")
    async with revalidation_app.here():
        await revalidation_app.http.post(REVALIDATE)
    assert revalidation_app.evaluations.requests[0]["metric"] == "contains"


async def test_a_second_request_gets_the_evaluation_that_is_under_way(revalidation_app: RevalidationApp) -> None:
    revalidation_app.evaluations.page = 1  # so that it is on a later page of the trainer's list
    async with revalidation_app.here():
        first = await revalidation_app.http.post(REVALIDATE)
        await revalidation_app.http.post("/v1/adapters/ant/versions/1/revalidate")
        again = await revalidation_app.http.post(REVALIDATE)
        assert again.json()["id"] == first.json()["id"]
        revalidation_app.evaluation("voice@1")["status"] = "failed"
        anew = await revalidation_app.http.post(REVALIDATE)
        assert anew.json()["id"] != first.json()["id"]


async def test_a_version_that_cannot_be_judged_again_says_why(
    revalidation_app: RevalidationApp, files: Callable[..., Any]
) -> None:
    await revalidation_app.push("mute", files(seed=8))
    await revalidation_app.verdict("mute@1")
    weights = (
        revalidation_app.store.path((await revalidation_app.version("ant@1"))["digest"]) / "adapter_model.safetensors"
    )
    weights.chmod(0o600)
    weights.write_bytes(b"")
    async with revalidation_app.here():
        paths = {name: f"/v1/adapters/{name}/revalidate" for name in ("bee/versions/1", "mute/versions/1")}
        assert error_of(await revalidation_app.http.post(paths["bee/versions/1"])) == (409, "never_judged")
        assert error_of(await revalidation_app.http.post(paths["mute/versions/1"])) == (409, "nothing_to_repeat")
        damaged = await revalidation_app.http.post("/v1/adapters/ant/versions/1/revalidate")
        assert error_of(damaged) == (409, "version_damaged")
        assert error_of(await revalidation_app.http.post("/v1/adapters/voice/versions/9/revalidate")) == (
            404,
            "version_not_found",
        )
        revalidation_app.evaluations.refused = {"voice@1"}
        assert error_of(await revalidation_app.http.post(REVALIDATE)) == (400, "invalid_value")
    assert error_of(await revalidation_app.http.post(REVALIDATE)) == (503, "trainer_unavailable")


async def test_what_the_version_holds_is_good_enough_though_it_is_off_the_list(
    revalidation_app: RevalidationApp,
) -> None:
    await judge(revalidation_app, "voice@1", files={"held_out": HELD_OUT})
    await revalidation_app.database.run(lambda db: db.execute(file_table.update().values(deleted_at=1)))
    async with revalidation_app.here():
        assert (await revalidation_app.http.post(REVALIDATE)).status_code == 200
        other = await revalidation_app.http.post("/v1/adapters/ant/versions/1/revalidate")
        assert error_of(other) == (404, "file_not_found"), "it holds nothing"
        due = (await revalidation_app.http.post("/v1/revalidations", json={"all": True})).json()["data"]
    assert {item["version"]: (item["error"] or {}).get("code") for item in due} == {
        "voice@1": None,
        "ant@1": "file_not_found",
    }


async def test_scopes_globs_and_projects_are_kept(revalidation_app: RevalidationApp) -> None:
    async with revalidation_app.here():
        missing = await revalidation_app.http.post(REVALIDATE, headers=await key_of(revalidation_app, Scope.ADAPTERS))
        assert error_of(missing) == (403, "insufficient_scope")
        narrow = await key_of(revalidation_app, *ALL_SCOPES, adapters=("ant",))
        hidden = await revalidation_app.http.post(REVALIDATE, headers=narrow)
        absent = await revalidation_app.http.post(
            REVALIDATE, headers=await key_of(revalidation_app, *ALL_SCOPES, project="other")
        )
        assert error_of(hidden) == error_of(absent) == (404, "adapter_not_found")
        due = await revalidation_app.http.post("/v1/revalidations", headers=narrow)
        assert due.json() == {"object": "list", "data": [], "left": 0}
    assert revalidation_app.evaluations.made == []


async def test_what_is_due_of_the_project_is_judged_again(
    revalidation_app: RevalidationApp, files: Callable[..., Any]
) -> None:
    await revalidation_app.push("cat", files(seed=7))
    await judge(revalidation_app, "cat@1", kind="revalidation", verdict="fail", days=92)
    revalidation_app.evaluations.refused = {"cat@1"}
    async with revalidation_app.here():
        answer = (await revalidation_app.http.post("/v1/revalidations", headers={"idempotency-key": "mine"})).json()
        again = (await revalidation_app.http.post("/v1/revalidations", json={})).json()
        every = (await revalidation_app.http.post("/v1/revalidations", json={"all": True})).json()
    shown = [(item["version"], item["reasons"], (item["evaluation"] or {}).get("id")) for item in answer["data"]]
    assert shown == [("voice@1", ["age"], "eval-1"), ("cat@1", ["age"], None)]
    assert answer["data"][1]["error"]["message"] == "no such suite"
    assert answer["left"] == 0
    assert again["data"][0]["evaluation"]["id"] == "eval-1"
    assert {item["version"] for item in every["data"]} == {"voice@1", "cat@1", "ant@1"}
    assert [body["model"] for body in revalidation_app.evaluations.requests] == ["voice@1", "ant@1"]
    assert "idempotency-key" not in revalidation_app.evaluations.headers[0]


async def test_one_request_makes_so_many_evaluations_and_says_what_is_left(
    revalidation_app: RevalidationApp, files: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revalidation_module, "MAX_AT_ONCE", 1)
    await judge(revalidation_app, "ant@1", days=91)
    async with revalidation_app.here():
        first = (await revalidation_app.http.post("/v1/revalidations")).json()
        second = (await revalidation_app.http.post("/v1/revalidations")).json()
    assert ([item["version"] for item in first["data"]], first["left"]) == (["voice@1"], 1)
    assert ([item["version"] for item in second["data"]], second["left"]) == (["voice@1", "ant@1"], 0)


async def test_what_cannot_be_judged_takes_nobody_s_place(
    revalidation_app: RevalidationApp, files: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revalidation_module, "MAX_AT_ONCE", 1)
    for seed, name in enumerate(("mute", "cat"), 7):
        await revalidation_app.push(name, files(seed=seed))
        await judge(revalidation_app, f"{name}@1", days=95, **({"evaluation": None} if name == "mute" else {}))
    await judge(revalidation_app, "voice@1", days=91)  # the last of them
    revalidation_app.evaluations.refused = {"cat@1"}
    async with revalidation_app.here():
        found = (await revalidation_app.http.post("/v1/revalidations")).json()
    shown = {item["version"]: (item["error"] or {}).get("code") for item in found["data"]}
    assert shown == {"mute@1": "nothing_to_repeat", "cat@1": "invalid_value", "voice@1": None}
    assert found["left"] == 0


async def test_on_another_base_the_timer_passes_over_what_does_not_fit_and_a_person_is_told(
    base: BaseDescription, files: Callable[..., Any]
) -> None:
    with tempfile.TemporaryDirectory(prefix="hatrack-") as home:
        async with RevalidationApp(Path(home), base).opened() as before:
            await before.push("voice", files(seed=1))
            await judge(before, "voice@1", days=91)
            assert [one.version for one in await before.revalidations.due_candidates()] == ["voice@1"]
        other = base.fingerprint.model_copy(update={"weights": "another", "template": "another"})
        async with RevalidationApp(Path(home), replace(base, fingerprint=other)).opened() as after, after.here():
            assert await after.revalidations.due_candidates() == []
            (item,) = (await after.http.post("/v1/revalidations")).json()["data"]
            assert (item["version"], item["error"]["code"]) == ("voice@1", "version_other_base")


async def test_the_bodies_are_checked(revalidation_app: RevalidationApp) -> None:
    async with revalidation_app.here():
        bodies: tuple[Any, ...] = ({"all": "yes"}, {"every": True}, [])
        for body in bodies:
            assert (await revalidation_app.http.post("/v1/revalidations", json=body)).status_code == 400
        assert (await revalidation_app.http.post(REVALIDATE, json={"all": True})).status_code == 400


async def scores_file(revalidation_app: RevalidationApp, file_id: str) -> None:
    """A file as evaluations store their verdicts' scores, of which only the row is there."""
    draft = NewFile(file_id, "default", "eval-1-evaluation_scores.json", Purpose.RESULTS, 7, "0" * 64, None)
    await revalidation_app.database.run(lambda db: file_records.add(db, draft))


async def test_the_trainer_is_told_which_verdict_to_compare_with_and_its_key_holds_the_scores(
    revalidation_app: RevalidationApp,
) -> None:
    await scores_file(revalidation_app, "file-scores")
    files = {"held_out": HELD_OUT, "scores": "file-scores"}
    recorded = await revalidation_app.verdict("voice@1", evaluation=EVALUATION, files=files, kind="training", rule=2)
    await revalidation_app.database.run(
        lambda db: db.execute(file_table.update().where(file_table.c.id == "file-scores").values(deleted_at=1))
    )
    async with revalidation_app.here():
        assert (await revalidation_app.http.post(REVALIDATE)).status_code == 200
        assert (await revalidation_app.http.post("/v1/adapters/ant/versions/1/revalidate")).status_code == 200
    contexts = revalidation_app.evaluations.contexts
    assert contexts[0]["earlier"] == {
        "id": recorded.json()["id"],
        "verdict": "pass",
        "rule": 2,
        "scores": {
            "id": "file-scores",
            "filename": "eval-1-evaluation_scores.json",
            "bytes": 7,
            "sha256": "0" * 64,
        },
    }
    assert contexts[1]["earlier"] is None, "no verdict on it has scores"
    key = revalidation_app.evaluations.headers[0]["x-hatrack-job-key-id"]
    held = sa.select(file_holds.c.file_id).where(file_holds.c.holder == key)
    assert await revalidation_app.database.run(lambda db: set(db.scalars(held))) == {HELD_OUT, "file-scores"}


async def test_scores_whose_bytes_are_gone_leave_a_revalidation_without_a_comparison(
    revalidation_app: RevalidationApp,
) -> None:
    await scores_file(revalidation_app, "file-scores")
    files = {"held_out": HELD_OUT, "scores": "file-scores"}
    await revalidation_app.verdict("voice@1", evaluation=EVALUATION, files=files, kind="training")
    gone = file_table.update().where(file_table.c.id == "file-scores").values(deleted_at=1, gone_at=1)
    await revalidation_app.database.run(lambda db: db.execute(gone))
    async with revalidation_app.here():
        assert (await revalidation_app.http.post(REVALIDATE)).status_code == 200
    (context,) = revalidation_app.evaluations.contexts
    assert context["earlier"] is None
