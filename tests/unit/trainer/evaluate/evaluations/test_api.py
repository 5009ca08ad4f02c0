"""`/v1/evaluations` as the gateway reaches it: what is refused, what is shown, and what becomes of an evaluation
whatever becomes of its worker and of the trainer. The workers are real processes that ask nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import EvaluationGateway
from tests.unit.trainer.evaluate.evaluations.trainer_app import PATIENCE_S, Client, Running, running
from trainer.evaluate.evaluations.spec import EvaluationJob
from trainer.runs import process, protocol, supervisor, transitions
from trainer.runs.protocol import SPEC


@pytest.fixture(autouse=True)
def _workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker outlives its test, not even one that outlives its trainer."""
    found: list[process.Spawned] = []

    def recorded(*arguments: Any) -> process.Spawned:
        found.append(process.spawn(*arguments))
        return found[-1]

    monkeypatch.setattr(supervisor, "spawn", recorded)
    monkeypatch.setattr(transitions, "BACK_OFF_S", (0.0, 0.05, 0.05))
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)
    yield
    for worker in found:
        while worker.poll() is None:
            worker.signal(signal.SIGKILL)
            time.sleep(0.01)


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: EvaluationGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


def error_of(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


async def test_an_evaluation_from_its_making_to_its_report(
    client: Client, gateway: EvaluationGateway, trainer: Running
) -> None:
    made = (await client.create(metadata={"team": "brand"})).json()
    assert made["object"] == "evaluation"
    assert made["id"].startswith("eval-")
    assert (made["status"], made["verdict"], made["finished_at"], made["error"]) == ("queued", None, None, None)
    assert [(arm["label"], arm["model"]) for arm in made["arms"]] == [
        ("voice@3", "voice@3"),
        ("base", "tiny"),
        ("live", "voice@2"),
    ]
    assert made["progress"] == {"stage": "queued", "done": 0, "total": 0}
    done = await client.ended(made["id"])
    assert (done["status"], done["verdict"], done["sentence"]) == ("succeeded", "pass", "Pass: better.")
    assert (done["metric"], done["examples"], done["result_files"]) == ("exact_match", 36, ["file-r"])
    assert (done["metadata"], done["progress"], done["candidate"]) == ({"team": "brand"}, None, "voice@3")
    report = await client.http.get(f"/v1/evaluations/{made['id']}/report")
    assert (report.status_code, report.json()) == (200, {"verdict": None})
    # the key dies with it
    await until(lambda: KEY not in gateway.keys)
    await until(lambda: not any(trainer.directories.keys_to_revoke.iterdir()))


async def test_the_worker_hears_what_the_base_s_template_can_do(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway
) -> None:
    for name, template, switches, thinks in (
        ("switch", "{{ enable_thinking }}<think>", {"enable_thinking": False}, False),
        ("always", "<think>", {}, True),
    ):
        base = shutil.copytree(base_dir, tmp_path / name / "base")
        (base / "chat_template.jinja").write_text(template)
        async with running(tmp_path / name / "home", base, gateway) as trainer:
            made = await trainer.client().made()
            job = EvaluationJob.model_validate_json((trainer.directories.path_of(made) / SPEC).read_bytes())
            assert (job.template_switches, job.thinks) == (switches, thinks)


async def test_the_page_can_load_and_run_nothing(client: Client) -> None:
    made = await client.made()
    await client.ended(made)
    page = await client.http.get(f"/v1/evaluations/{made}/report.html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["default-src 'none'", "style-src 'unsafe-inline'"]
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "sandbox"} <= set(policy)
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_without_a_report_the_answer_says_why(client: Client) -> None:
    made = await client.made(metadata={"hold": "1"})
    for path in ("report", "report.html"):
        early = await client.http.get(f"/v1/evaluations/{made}/{path}")
        assert (early.status_code, error_of(early)["code"]) == (409, "not_finished")
        assert early.headers["x-should-retry"] == "false"
    await client.http.post(f"/v1/evaluations/{made}/cancel")
    never = await client.http.get(f"/v1/evaluations/{made}/report")
    assert (never.status_code, error_of(never)["code"]) == (404, "not_found")
    assert "cancelled" in error_of(never)["message"]


ARMS = [{"label": "a", "model": "voice@1"}, {"label": "b", "model": "voice@2"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metric": "bleu"}, "metric"),
        ({"metric": "perplexity"}, "metric"),
        ({"metric": "length_words"}, "metric"),
        ({"metric": "regex"}, "metric"),
        ({"metric": "judge"}, "metric"),
        ({"metric": {"name": "regex", "pattern": "("}}, "metric"),
        ({"metric": {"name": "json_schema"}}, "metric"),
        ({"suites": ["general", "weather"]}, "suites"),
        ({"judge": "nobody"}, "judge"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"repeats": "2"}, "repeats"),
        ({"promote": "always"}, "promote"),
        ({"colour": "red"}, "colour"),
        ({"arms": ARMS}, "arms"),
        ({"model": None}, "model"),
        ({"candidate": "voice"}, "candidate"),
        ({"model": None, "arms": [*ARMS, ARMS[0]]}, "arms.2.label"),
        ({"model": None, "arms": ARMS, "candidate": "c", "bases": ["b"]}, "candidate"),
        ({"model": None, "arms": ARMS, "candidate": "a", "bases": ["c"]}, "bases.0"),
        ({"model": None, "arms": ARMS, "candidate": "a"}, "bases"),
        ({"model": None, "arms": ARMS, "candidate": "a", "bases": ["a"]}, "bases"),
        ({"model": None, "arms": ARMS, "bases": ["a"]}, "bases"),
        ({"model": None, "arms": ARMS, "promote": "auto"}, "promote"),
        ({"model": None, "arms": [{"label": "a", "model": "x", "endpoint": "elsewhere"}]}, "arms.0.endpoint"),
        ({"model": None, "arms": [{"label": "a", "model": "x", "url": "http://x"}]}, "arms.0.url"),
    ],
)
async def test_an_unavailable_option_is_refused_with_its_field(
    client: Client, trainer: Running, body: dict[str, Any], param: str
) -> None:
    answer = await client.create(**body)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param), answer.text
    assert trainer.directories.ids() == []


async def test_the_message_says_what_is_allowed(client: Client) -> None:
    assert "exact_match" in error_of(await client.create(metric="bleu"))["message"]
    assert "general" in error_of(await client.create(suites=["weather"]))["message"]


async def test_the_same_idempotency_key_is_the_same_evaluation(client: Client) -> None:
    first = await client.create(idempotency="once", metadata={"hold": "1"})
    again = await client.create(idempotency="once", metadata={"hold": "1"})
    assert first.json()["id"] == again.json()["id"]
    assert "x-hatrack-replayed" not in first.headers
    assert again.headers["x-hatrack-replayed"] == "true"
    other = await client.create(idempotency="once")
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")


async def test_an_evaluation_that_names_a_dataset_shows_and_repeats_its_file(trainer: Running, client: Client) -> None:
    first = await client.create(idempotency="once", held_out="support-heldout", metadata={"hold": "1"})
    assert (first.status_code, first.json()["held_out"]) == (200, "held")
    job = trainer.directories.read(first.json()["id"], protocol.SPEC, EvaluationJob)
    assert job is not None
    assert job.body.held_out == "held"  # what the verdict holds, and what a revalidation asks for
    again = await client.create(idempotency="once", held_out="support-heldout", metadata={"hold": "1"})
    assert again.json()["id"] == first.json()["id"]


async def test_lists_are_paged_and_other_projects_evaluations_are_not_found(trainer: Running, client: Client) -> None:
    mine = [await client.made(metadata={"hold": "1"}) for _ in range(3)]
    other = trainer.client("other")
    theirs = await other.made(metadata={"hold": "1"})
    page = (await client.http.get("/v1/evaluations?limit=2")).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (mine[:0:-1], True)
    rest = (await client.http.get(f"/v1/evaluations?after={mine[1]}")).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (mine[:1], False)
    assert [one["id"] for one in (await other.http.get("/v1/evaluations")).json()["data"]] == [theirs]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/report"), ("GET", "/report.html")):
        answers = [
            await other.http.request(method, f"/v1/evaluations/{name}{path}") for name in (mine[0], "eval-nothing")
        ]
        texts = [answer.text.replace(mine[0], "IT").replace("eval-nothing", "IT") for answer in answers]
        assert texts[0] == texts[1]
        assert answers[0].status_code == 404


async def test_what_compares_an_adapter_that_the_key_may_not_use_is_like_none(client: Client) -> None:
    held = {"hold": "1"}
    made = [await client.create({"candidate": f"{name}@3", "live": f"{name}@2"}, metadata=held) for name in "abab"]
    mine = [answer.json()["id"] for answer in made]
    narrow = {"x-hatrack-adapters": "b*,c", "x-hatrack-key-id": "key_narrow"}
    seen = (await client.http.get("/v1/evaluations?limit=1", headers=narrow)).json()
    assert ([one["id"] for one in seen["data"]], seen["has_more"]) == ([mine[3]], True)
    seen = (await client.http.get(f"/v1/evaluations?limit=1&after={mine[3]}", headers=narrow)).json()
    assert ([one["id"] for one in seen["data"]], seen["has_more"]) == ([mine[1]], False)
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/report"), ("GET", "/report.html")):
        answer = await client.http.request(method, f"/v1/evaluations/{mine[0]}{path}", headers=narrow)
        assert answer.status_code == 404
    assert (await client.http.get(f"/v1/evaluations/{mine[1]}", headers=narrow)).status_code == 200


@pytest.mark.parametrize(
    ("globs", "context"),
    [
        ({"x-hatrack-adapters": "shop-*"}, {"candidate": None, "live": None}),
        ({"x-hatrack-stores": "public"}, {"stores": [["vs_1", "public"], ["vs_2", "secret"]]}),
        ({"x-hatrack-stores": "public"}, {}),
    ],
)
async def test_an_evaluation_outside_a_keys_globs_is_like_none(
    client: Client, globs: dict[str, str], context: dict[str, Any]
) -> None:
    """One of the base alone, of another store, and one whose stores nobody recorded; its creator sees it."""
    arms = [{"label": label, "model": "tiny"} for label in "ab"]
    body: dict[str, Any] = {} if "candidate" not in context else {"model": None, "arms": arms}
    answer = await client.create(context, metadata={"hold": "1"}, **body)
    assert answer.status_code == 200, answer.text
    made = answer.json()["id"]
    other = globs | {"x-hatrack-key-id": "key_narrow"}
    assert (await client.http.get("/v1/evaluations", headers=other)).json()["data"] == []
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/report"), ("GET", "/report.html")):
        assert (await client.http.request(method, f"/v1/evaluations/{made}{path}", headers=other)).status_code == 404
    review = await client.http.post("/v1/reviews", json={"evaluation": made}, headers=other)
    assert review.status_code == 404
    assert [one["id"] for one in (await client.http.get("/v1/evaluations", headers=globs)).json()["data"]] == [made]
    matching = {"x-hatrack-adapters": "voice", "x-hatrack-stores": "public,vs_2", "x-hatrack-key-id": "key_narrow"}
    shown = (await client.http.get("/v1/evaluations", headers=matching)).json()["data"]
    assert bool(shown) is ("stores" in context)


async def test_too_many_are_refused(tmp_path: Path, base_dir: Path, gateway: EvaluationGateway) -> None:
    async with running(tmp_path, base_dir, gateway, max_queued=1) as trainer:
        client = trainer.client()
        await client.made(metadata={"hold": "1"})
        answer = await client.create()
        assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_evaluations")


async def test_one_runs_at_a_time_and_projects_take_turns(trainer: Running, client: Client) -> None:
    first = await client.made(metadata={"hold": "1"})
    await client.asking(first)
    second, other = await client.made(metadata={"hold": "1"}), trainer.client("other")
    theirs = await other.made(metadata={"hold": "1"})
    assert [(await client.get(second))["status"], (await other.get(theirs))["status"]] == ["queued", "queued"]
    (trainer.directories.path_of(first) / "go").touch()
    await other.asking(theirs)  # though it came last: their project has waited longer
    assert (await client.get(second))["status"] == "queued"


@pytest.mark.slow
async def test_cancelling_ends_a_running_and_a_queued_one_and_their_keys(
    client: Client, gateway: EvaluationGateway, trainer: Running
) -> None:
    gateway.keys.add("second")
    running_one = await client.made(metadata={"hold": "1"})
    await client.asking(running_one)
    queued = await client.made(key="second")
    for evaluation_id in (queued, running_one):
        cancelled = (await client.http.post(f"/v1/evaluations/{evaluation_id}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        again = await client.http.post(f"/v1/evaluations/{evaluation_id}/cancel")
        assert again.json()["status"] == "cancelled"
    await until(lambda: not gateway.keys)
    done = await client.made()
    await client.ended(done)
    late = await client.http.post(f"/v1/evaluations/{done}/cancel")
    assert (late.status_code, error_of(late)["code"]) == (400, "invalid_state")


async def test_a_killed_worker_is_started_again(client: Client) -> None:
    made = await client.made(metadata={"die": "5"})
    assert (await client.ended(made))["status"] == "succeeded"


@pytest.mark.slow
async def test_a_worker_that_dies_without_progress_is_given_up(client: Client) -> None:
    failed = await client.ended(await client.made(metadata={"stuck": "1"}))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "worker_killed")


async def test_a_worker_survives_a_killed_trainer_and_is_readopted(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, base_dir, gateway, stop_s=0.2) as first:
        client = first.client()
        made = await client.made(metadata={"hold": "1"})
        await client.asking(made)
        pid = await first.worker(made)
        await first.killed()
    assert psutil.pid_exists(pid)
    async with running(tmp_path, base_dir, gateway) as second:
        assert await second.worker(made) == pid
        (second.directories.path_of(made) / "go").touch()
        assert (await second.client().ended(made))["status"] == "succeeded"


@pytest.mark.slow
async def test_a_worker_that_ended_while_there_was_no_trainer_is_not_forgotten(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway
) -> None:
    async with running(tmp_path, base_dir, gateway, stop_s=0.2) as first:
        client = first.client()
        made = await client.made(metadata={"hold": "1"})
        await client.asking(made)
        pid = await first.worker(made)
        waiting = await client.made()
        await first.killed()
    os.kill(pid, signal.SIGKILL)
    async with running(tmp_path, base_dir, gateway) as second:
        await second.client().asking(made)
        (second.directories.path_of(made) / "go").touch()
        assert (await second.client().ended(made))["status"] == "succeeded"
        assert (await second.client().ended(waiting))["status"] == "succeeded"


async def test_a_stopped_trainer_ends_its_worker_and_the_next_goes_on(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway
) -> None:
    async with running(tmp_path, base_dir, gateway) as first:
        made = await first.client().made(metadata={"hold": "1"})
        await first.client().asking(made)
        pid = await first.worker(made)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    async with running(tmp_path, base_dir, gateway) as second:
        await second.client().asking(made)
        (second.directories.path_of(made) / "go").touch()
        assert (await second.client().ended(made))["status"] == "succeeded"


@pytest.mark.slow
async def test_old_folders_are_cleared_and_keep_their_report(
    tmp_path: Path, base_dir: Path, gateway: EvaluationGateway
) -> None:
    async with running(tmp_path, base_dir, gateway) as first:
        made = await first.client().made(metadata={"die": "1"})
        await first.client().ended(made)
        answers = first.directories.path_of(made) / "answers.jsonl"
        assert answers.exists()
        log = answers.with_name("worker.log")
        assert log.exists()
    await asyncio.sleep(1.1)  # it ended in another second than this one
    async with running(tmp_path, base_dir, gateway, keep_days=0.0) as second:
        await until(lambda: not answers.exists() and not log.exists())
        assert (await second.client().http.get(f"/v1/evaluations/{made}/report")).status_code == 200


async def until(wanted: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.02)
