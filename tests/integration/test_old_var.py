"""This version takes over the home of an earlier one as kill -9 left it, backed up and restored in another place:
adapters serve, and jobs that ran go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.config import Settings
from service.storage.backup import make_backup
from service.storage.restore import restore
from tests.conftest import ENGINE_TIMEOUT_S
from tests.support.gateway import TIMEOUT
from tests.support.old_var import OldGateway, OldVersion, unpack, usage_of, versions
from tests.support.scheduling import normal_priority

pytestmark = pytest.mark.slow
OVER = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module", params=versions(), ids=lambda version: version.directory.name)
def version(request: pytest.FixtureRequest) -> OldVersion:
    version: OldVersion = request.param
    return version


@pytest.fixture(scope="module")
def facts(version: OldVersion) -> dict[str, Any]:
    return version.facts


@pytest.fixture(scope="module")
def upgraded_gateway(
    version: OldVersion, base_dir: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OldGateway]:
    """A gateway with engine and trainer, started in the old home, which was restored from a backup.

    Neither the path of the home and of its base nor the gateway's address is what it was, as on another machine.
    """
    directory = tmp_path_factory.mktemp("old")
    home, before = directory / "var", directory / "before" / "var"

    def restore_elsewhere() -> None:
        unpack(version, before, base_dir=directory / "before" / "base", gateway="http://127.0.0.1:1")
        settings = Settings(home=before, base_model=str(base_dir), engine_device="cpu")
        backup = make_backup(settings, directory / "backup.tar", lambda *_: None)
        shutil.rmtree(before)
        restore(settings.model_copy(update={"home": home}), backup.path, lambda *_: None)

    started = OldGateway(
        home=home,
        base_dir=base_dir,
        settings={"HATRACK_TRAINER_DEVICE": "cpu", "HATRACK_ENGINE_DTYPE": "bfloat16"},
        arguments=("--trainer",),
    )
    with normal_priority():
        started.start(prepare=restore_elsewhere)
        yield started
        started.stop()
    assert started.engine_processes() == []


@pytest.fixture(scope="module")
def http(upgraded_gateway: OldGateway) -> Iterator[httpx.Client]:
    with upgraded_gateway.http() as client:
        yield client


def wait_for_answer(http: httpx.Client, path: str, condition: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + ENGINE_TIMEOUT_S
    while time.monotonic() < deadline:
        answer = http.get(path)
        if answer.status_code == 200 and condition(answer.json()):  # 503 while the trainer starts
            return answer.json()
        time.sleep(0.25)
    raise AssertionError(f"{path} did not answer as expected: {answer.text}")


def test_old_adapters_answer_under_their_digests(
    upgraded_gateway: OldGateway, http: httpx.Client, version: OldVersion
) -> None:
    adapters = version.answers["gateway"]["projects"]["default"]["adapters"]
    for model, number in (("shop", "2"), ("shop@1", "1"), ("shop:candidate", "3"), ("pinned", "1"), ("trained@1", "1")):
        name = model.partition("@")[0].partition(":")[0]
        answer = upgraded_gateway.chat(model, "Where is my parcel?", max_tokens=4)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-hatrack-adapter"] == f"{name}@{number}"
        assert answer.headers["x-hatrack-digest"] == adapters[name]["versions"][number]["digest"]
    proven = http.post("/v1/adapters/shop/versions/1/prove")
    assert (proven.status_code, proven.json()["state"]) == (200, "ready"), proven.text


def test_callers_stay_with_the_version_that_the_split_gave_them(
    upgraded_gateway: OldGateway, facts: dict[str, Any]
) -> None:
    answers = {
        caller: upgraded_gateway.chat("shop-split", "hello", max_tokens=1, user=caller) for caller in facts["split"]
    }
    assert {caller: answer.headers["x-hatrack-adapter"] for caller, answer in answers.items()} == facts["split"]


def test_old_documents_are_found_and_ground_an_old_version(
    upgraded_gateway: OldGateway, http: httpx.Client, facts: dict[str, Any]
) -> None:
    store = facts["stores"]["handbook"]
    results = http.post(f"/v1/vector_stores/{store}/search", json={"query": "Who carries order TW-2041?"})
    assert results.status_code == 200, results.text
    assert results.json()["data"][0]["filename"] == "parcels.md"
    grounded = upgraded_gateway.chat("grounded", "Who carries order TW-2041?", max_tokens=4)
    assert grounded.status_code == 200, grounded.text
    assert [citation["source"] for citation in grounded.json()["citations"]] == ["parcels.md"]


def test_old_keys_keep_their_permissions_and_the_revoked_one_stays_revoked(
    upgraded_gateway: OldGateway, facts: dict[str, Any]
) -> None:
    def chat(name: str, model: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        headers = {"authorization": f"Bearer {facts['keys'][name]}"}
        return httpx.post(
            f"{upgraded_gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=TIMEOUT
        ).status_code

    assert (chat("widget", "shop"), chat("widget", "pinned")) == (200, 404)
    assert (chat("ops", "shop"), chat("ops", "shop-split")) == (200, 404), "acme has a shop of its own, and no other"
    assert chat("revoked", "shop") == 401


def test_an_alias_rolls_back_to_the_version_it_had_before_the_crash(
    upgraded_gateway: OldGateway, http: httpx.Client
) -> None:
    assert http.get("/v1/adapters/shop/versions/2").json()["verdict"]["verdict"] == "pass"
    back = http.post("/v1/adapters/shop/aliases/live/rollback")
    assert (back.status_code, back.json()["version"]) == (200, 1), back.text
    assert upgraded_gateway.chat("shop", "hello", max_tokens=1).headers["x-hatrack-adapter"] == "shop@1"
    assert http.put("/v1/adapters/shop/aliases/live", json={"version": 2}).status_code == 200


def test_the_running_job_resumes_from_its_checkpoint_and_the_queued_job_follows(
    http: httpx.Client, facts: dict[str, Any]
) -> None:
    jobs = {name: f"/v1/fine_tuning/jobs/{job}" for name, job in facts["jobs"].items()}
    for name in ("running", "queued"):
        job = wait_for_answer(http, jobs[name], lambda run: run["status"] in OVER)
        assert (job["status"], job["fine_tuned_model"]) == ("succeeded", f"{name}@1"), job
        assert job["metadata"]["hatrack_verdict"] == "not_enough_evidence"
    events = wait_for_answer(http, f"{jobs['running']}/events?limit=100", lambda _: True)["data"][::-1]
    steps = [event["data"]["step"] for event in events if event["type"] == "metrics"]
    assert steps[-1] == 12
    assert set(range(1, 13)) <= set(steps)
    assert len(steps) - 12 <= 1, f"more than the step after the checkpoint was done again: {steps}"
    assert http.get(jobs["paused"]).json()["status"] == "paused"
    assert http.post(f"{jobs['paused']}/cancel").json()["status"] == "cancelled"


def test_the_evaluation_that_was_running_succeeds(http: httpx.Client, facts: dict[str, Any]) -> None:
    evaluation = f"/v1/evaluations/{facts['evaluations']['unfinished']}"
    done = wait_for_answer(http, evaluation, lambda run: run["status"] in OVER)
    assert done["error"] is None, done["error"]
    assert (done["status"], done["examples"]) == ("succeeded", 10)
    assert http.get(f"{evaluation}/report").json()["labels"] == ["shop", "base"]


def test_usage_and_audit_entries_from_before_the_crash_are_kept(http: httpx.Client, facts: dict[str, Any]) -> None:
    (row,) = http.get(f"/v1/usage?{usage_of(facts)}&group_by=").json()["data"]
    assert row["requests"] >= facts["requests"]
    created = http.get("/v1/audit?action=key.create&limit=100").json()["data"]
    assert {entry["detail"]["name"] for entry in created} >= {"widget", "ops", "reader", "revoked"}
