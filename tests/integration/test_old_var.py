"""This version takes over the home of an earlier one as kill -9 left it: what served serves, what ran goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import ENGINE_TIMEOUT_S
from tests.support.gateway import TIMEOUT
from tests.support.old_var import OldGateway, OldVersion, unpack, usage_of, versions
from tests.support.scheduling import normal_priority

pytestmark = pytest.mark.slow
OVER = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module", params=versions(), ids=lambda version: version.directory.name)
def version(request: pytest.FixtureRequest) -> OldVersion:
    found: OldVersion = request.param
    return found


@pytest.fixture(scope="module")
def facts(version: OldVersion) -> dict[str, Any]:
    return version.facts


@pytest.fixture(scope="module")
def successor(version: OldVersion, base_dir: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldGateway]:
    """A gateway with engine and trainer, started in the old home."""
    home = tmp_path_factory.mktemp("old") / "var"
    started = OldGateway(
        home=home, base_dir=base_dir, settings={"HATRACK_TRAINER_DEVICE": "cpu"}, arguments=("--trainer",)
    )
    with normal_priority():
        started.start(prepare=lambda: unpack(version, home, base_dir=base_dir, gateway=started.url))
        yield started
        started.stop()
    assert started.engine_processes() == []


@pytest.fixture(scope="module")
def http(successor: OldGateway) -> Iterator[httpx.Client]:
    with successor.http() as client:
        yield client


def until(http: httpx.Client, path: str, true: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + ENGINE_TIMEOUT_S
    while time.monotonic() < deadline:
        answer = http.get(path)
        if answer.status_code == 200 and true(answer.json()):  # 503 while the trainer starts
            return answer.json()
        time.sleep(0.25)
    raise AssertionError(f"{path} did not come to be as it should: {answer.text}")


def test_old_adapters_answer_under_their_digests(
    successor: OldGateway, http: httpx.Client, version: OldVersion
) -> None:
    adapters = version.answers["gateway"]["projects"]["default"]["adapters"]
    for model, number in (("shop", "2"), ("shop@1", "1"), ("shop:candidate", "3"), ("pinned", "1"), ("trained@1", "1")):
        name = model.partition("@")[0].partition(":")[0]
        answer = successor.chat(model, "Where is my parcel?", max_tokens=4)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-hatrack-adapter"] == f"{name}@{number}"
        assert answer.headers["x-hatrack-digest"] == adapters[name]["versions"][number]["digest"]
    proven = http.post("/v1/adapters/shop/versions/1/prove")
    assert (proven.status_code, proven.json()["state"]) == (200, "ready"), proven.text


def test_callers_stay_with_the_version_that_the_split_gave_them(successor: OldGateway, facts: dict[str, Any]) -> None:
    answers = {caller: successor.chat("shop-split", "hello", max_tokens=1, user=caller) for caller in facts["split"]}
    assert {caller: answer.headers["x-hatrack-adapter"] for caller, answer in answers.items()} == facts["split"]


def test_old_documents_are_found_and_ground_an_old_version(
    successor: OldGateway, http: httpx.Client, facts: dict[str, Any]
) -> None:
    store = facts["stores"]["handbook"]
    found = http.post(f"/v1/vector_stores/{store}/search", json={"query": "Who carries order TW-2041?"})
    assert found.status_code == 200, found.text
    assert found.json()["data"][0]["filename"] == "parcels.md"
    grounded = successor.chat("grounded", "Who carries order TW-2041?", max_tokens=4)
    assert grounded.status_code == 200, grounded.text
    assert [citation["source"] for citation in grounded.json()["citations"]] == ["parcels.md"]


def test_old_keys_do_what_they_did_and_the_revoked_one_nothing(successor: OldGateway, facts: dict[str, Any]) -> None:
    def chat(name: str, model: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
        headers = {"authorization": f"Bearer {facts['keys'][name]}"}
        return httpx.post(
            f"{successor.url}/v1/chat/completions", headers=headers, json=body, timeout=TIMEOUT
        ).status_code

    assert (chat("widget", "shop"), chat("widget", "pinned")) == (200, 404)
    assert (chat("ops", "shop"), chat("ops", "shop-split")) == (200, 404), "acme has a shop of its own, and no other"
    assert chat("revoked", "shop") == 401


def test_an_alias_goes_back_to_where_it_was_before_the_crash(successor: OldGateway, http: httpx.Client) -> None:
    assert http.get("/v1/adapters/shop/versions/2").json()["verdict"]["verdict"] == "pass"
    back = http.post("/v1/adapters/shop/aliases/live/rollback")
    assert (back.status_code, back.json()["version"]) == (200, 1), back.text
    assert successor.chat("shop", "hello", max_tokens=1).headers["x-hatrack-adapter"] == "shop@1"
    assert http.put("/v1/adapters/shop/aliases/live", json={"version": 2}).status_code == 200


def test_the_job_that_ran_goes_on_from_its_checkpoint_and_the_one_behind_it_follows(
    http: httpx.Client, facts: dict[str, Any]
) -> None:
    jobs = {name: f"/v1/fine_tuning/jobs/{job}" for name, job in facts["jobs"].items()}
    for name in ("running", "queued"):
        job = until(http, jobs[name], lambda found: found["status"] in OVER)
        assert (job["status"], job["fine_tuned_model"]) == ("succeeded", f"{name}@1"), job
        assert job["metadata"]["hatrack_verdict"] == "not_enough_evidence"
    events = until(http, f"{jobs['running']}/events?limit=100", lambda found: True)["data"][::-1]
    steps = [event["data"]["step"] for event in events if event["type"] == "metrics"]
    assert steps[-1] == 12
    assert set(range(1, 13)) <= set(steps)
    assert len(steps) - 12 <= 1, f"more than the step after the checkpoint was done again: {steps}"
    assert http.get(jobs["paused"]).json()["status"] == "paused"
    assert http.post(f"{jobs['paused']}/cancel").json()["status"] == "cancelled"


def test_the_evaluation_that_ran_ends(http: httpx.Client, facts: dict[str, Any]) -> None:
    evaluation = f"/v1/evaluations/{facts['evaluations']['unfinished']}"
    done = until(http, evaluation, lambda found: found["status"] in OVER)
    assert done["error"] is None, done["error"]
    assert (done["status"], done["examples"]) == ("succeeded", 10)
    assert http.get(f"{evaluation}/report").json()["labels"] == ["shop", "base"]


def test_what_was_used_and_noted_before_the_crash_still_counts(http: httpx.Client, facts: dict[str, Any]) -> None:
    (row,) = http.get(f"/v1/usage?{usage_of(facts)}&group_by=").json()["data"]
    assert row["requests"] >= facts["requests"]
    created = http.get("/v1/audit?action=key.create&limit=100").json()["data"]
    assert {entry["detail"]["name"] for entry in created} >= {"widget", "ops", "reader", "revoked"}
