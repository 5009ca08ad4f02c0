"""The trainer's API through the official client: OpenAI's contract, paging, filters, one error shape."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.finetune.trainers import Client, Running, context, gateway_headers, running
from tests.unit.trainer.through_gateway import CONTEXT_HEADER
from trainer.finetune.spec import JobSpec
from trainer.runs import protocol


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    async with running(tmp_path, base_dir, gateway) as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


async def test_a_job_from_its_creation_to_its_end(trainer: Running, client: Client, gateway: FakeGateway) -> None:
    made = await client.create(
        suffix="voice", seed=7, metadata={"team": "sea", "paused": "yes"}, hyperparameters={"n_epochs": "auto"}
    )
    assert made.id.startswith("ftjob-")
    assert (made.object, made.status, made.seed) == ("fine_tuning.job", "validating_files", 7)
    assert (made.model, made.training_file, made.validation_file) == ("tiny", "train", None)
    assert (made.finished_at, made.fine_tuned_model, made.trained_tokens, made.error) == (None, None, None, None)
    assert (made.organization_id, made.result_files, made.integrations) == ("default", [], [])
    assert made.hyperparameters.n_epochs == "auto"
    folder = trainer.trainer.jobs.directories.path_of(made.id)
    assert oct((folder / "key").stat().st_mode & 0o777) == "0o600"

    job = await client.ended(made.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", "voice@1", 40)
    assert job.finished_at >= job.created_at
    assert job.estimated_finish is None
    assert job.metadata == {"team": "sea", "paused": "yes"}
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (1, 4)
    assert job.method.type == "supervised"
    assert job.method.supervised.hyperparameters.batch_size == 4
    ours = job.hatrack
    assert (ours["adapter"], ours["cost"], ours["plan"]["recipe"]["rank"]) == ("voice", None, 4)
    assert ours["seconds"] > 0
    assert ours["report"]["trained_on"] == 10
    assert ours["pauses"] == {"count": 5, "seconds": 7.5}
    assert (await client.http.get("/health")).json() == {"status": "ok", "paused_seconds": 7.5}
    assert (await client.messages(made.id))[0] == f"Created fine-tuning job: {made.id}"
    assert (await client.messages(made.id))[-1] == "voice@1 is proven"

    assert job.result_files == ["file-kept1", "file-kept2"]
    table, report = (upload["file"].decode() for upload in gateway.kept)
    assert table.splitlines()[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert len(table.splitlines()) == 6
    assert [upload["purpose"] for upload in gateway.kept] == [b"fine-tune-results"] * 2
    answer = await client.http.get(f"/v1/fine_tuning/jobs/{made.id}/report")
    assert answer.json() == json.loads(report) | {"refused": False}
    # the key goes a moment after the state that the client sees
    await client.until(made.id, lambda _job: not (folder / "key").exists(), "the key's end")


async def test_the_hyperparameters_that_a_job_shows_make_another_one(client: Client) -> None:
    for multiplier in ("auto", 2.0):
        made = await client.create(hyperparameters={"learning_rate_multiplier": multiplier})
        shown = (await client.ended(made.id)).hyperparameters.model_dump()
        assert shown["learning_rate_multiplier"] == multiplier
    shown.pop("learning_rate")  # the stand-in's, whatever was asked for
    assert (await client.create(hyperparameters=shown)).status == "validating_files"


async def test_the_verdict_stands_in_the_jobs_metadata_and_its_files_among_the_results(client: Client) -> None:
    made = await client.create(metadata={"judging": "pass"})
    job = await client.ended(made.id)
    assert job.metadata == {"judging": "pass", "hatrack_verdict": "pass"}
    assert job.result_files == ["file-kept1", "file-kept2", "file-report", "file-page", "file-held"]
    ours = job.hatrack
    assert (ours["metric"], ours["verdict"]["verdict"], ours["verdict"]["live"]) == ("rouge_l", "pass", True)
    assert ours["plan"]["primary"] == {
        "name": "rouge_l", "why": "it is free text", "max_tokens": 16, "pattern": None, "json_schema": None
    }  # fmt: skip
    assert (await client.ended((await client.create(metadata={"judging": "fail"})).id)).metadata[
        "hatrack_verdict"
    ] == "fail"


async def test_how_it_is_to_be_judged_is_kept_with_the_operators_rules(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway
) -> None:
    rules = {"min_examples": 50, "smallest_difference": 0.1, "live_margin": 0.08}
    async with running(tmp_path, base_dir, gateway, **rules) as trainer:
        client, place = trainer.client(), trainer.trainer.jobs.directories
        asked = {"metric": '{"name": "regex", "pattern": "^a"}', "promote": "never", "suites": "none"}
        made = await client.create(metadata={"hold": "1", **asked})
        found = place.read(made.id, protocol.SPEC, JobSpec)
        assert found is not None
        wish = found.judging
        assert (wish.metric, wish.pattern, wish.promote, wish.suites) == ("regex", "^a", "never", ())
        assert (wish.min_examples, wish.smallest_difference, wish.live_margin) == (50, 0.1, 0.08)
        other = await client.create(metadata={"hold": "1"})
        plain = place.read(other.id, protocol.SPEC, JobSpec)
        assert plain is not None
        assert (plain.judging.metric, plain.judging.promote, plain.judging.suites) == (None, "auto", ("general",))


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"metric": "bleu"}, "metric", "no metric named 'bleu'"),
        ({"metric": "perplexity"}, "metric", "any tuning of style lowers it"),
        ({"metric": "length_words"}, "metric", "cannot be the primary metric"),
        ({"metric": "regex"}, "metric", "needs a `pattern`"),
        ({"metric": "judge"}, "metric", "needs a judge"),
        ({"metric": {"name": "regex", "pattern": "("}}, "metric", "pattern"),
        ({"metric": {"pattern": "a"}}, "metric", "name"),
        ({"suites": ["general", "trivia"]}, "suites", "no suite named 'trivia'"),
        ({"judge": "oracle"}, "judge", "oracle"),
        ({"promote": "always"}, "promote", "always"),
    ],
)
async def test_what_it_cannot_be_judged_by_is_refused_before_it_is_made(
    trainer: Running, client: Client, asked: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(words)) as refused:
        await client.create(hyperparameters=asked)
    assert refused.value.param == f"hyperparameters.{param}"
    assert trainer.trainer.jobs.directories.ids() == []


async def test_events_are_paged_newest_first_and_streamed_oldest_first(client: Client) -> None:
    made = await client.create(metadata={"steps": "30"})
    await client.ended(made.id)
    page = await client.openai.fine_tuning.jobs.list_events(made.id)
    assert len(page.data) == 20
    assert page.has_more
    assert page.data[0].message == "voice@1 is proven"
    assert (page.data[1].type, page.data[1].level) == ("metrics", "info")
    everything = await client.events(made.id)
    assert len({event.id for event in everything}) == len(everything) > 30
    steps = [event.data["step"] for event in everything if event.type == "metrics"]
    assert steps == list(range(1, 31))
    last = await client.openai.fine_tuning.jobs.list_events(made.id, after=everything[3].id, limit=100)
    assert ([event.id for event in last.data], last.has_more) == ([e.id for e in everything[2::-1]], False)

    place = f"/v1/fine_tuning/jobs/{made.id}/events?stream=true"
    streamed = await client.http.get(place)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    ids = [line[4:] for line in streamed.text.splitlines() if line.startswith("id: ")]
    assert ids == [event.id for event in everything]
    assert streamed.text.endswith("data: [DONE]\n\n")
    rest = await client.http.get(place, headers={"last-event-id": ids[10]})
    frames = [json.loads(line[6:]) for line in rest.text.splitlines() if line.startswith("data: {")]
    assert [frame["id"] for frame in frames] == ids[11:]
    assert frames[-1]["message"] == "voice@1 is proven"


async def test_a_stream_goes_along_with_a_running_job_and_ends_with_it(client: Client) -> None:
    made = await client.create(metadata={"steps": "10"})
    seen = []
    async with client.http.stream("GET", f"/v1/fine_tuning/jobs/{made.id}/events?stream=true") as answer:
        async for line in answer.aiter_lines():
            seen.append(line)
    assert seen[-2:] == ["data: [DONE]", ""]
    assert sum('"type": "metrics"' in line for line in seen) == 10
    assert (await client.openai.fine_tuning.jobs.retrieve(made.id)).status == "succeeded"


async def test_checkpoints_are_openais(client: Client) -> None:
    made = await client.create()
    await client.ended(made.id)
    (found,) = [c async for c in client.openai.fine_tuning.jobs.checkpoints.list(made.id)]
    assert (found.object, found.fine_tuning_job_id, found.step_number) == ("fine_tuning.job.checkpoint", made.id, 5)
    assert found.fine_tuned_model_checkpoint == "voice@1"
    assert found.metrics.step == 5
    assert (found.metrics.train_loss, found.metrics.train_mean_token_accuracy) == (0.2, 0.5)
    assert (found.metrics.full_valid_loss, found.metrics.full_valid_mean_token_accuracy) == (0.4, 0.4)
    assert (found.metrics.valid_loss, found.metrics.valid_mean_token_accuracy) == (0.4, 0.4)


async def test_jobs_are_paged_and_filtered_by_metadata(client: Client) -> None:
    made = [
        await client.create(metadata={"team": team, 'quo"te': "é"} if team else None)
        for team in ("sea", "land", "", "sea", "")
    ]
    jobs = client.openai.fine_tuning.jobs
    assert [job.id async for job in jobs.list(limit=2)] == [job.id for job in made[::-1]]
    first = await jobs.list(limit=2)
    assert (len(first.data), first.has_more) == (2, True)
    assert not (await jobs.list(limit=5)).has_more
    sea = await jobs.list(metadata={"team": "sea"})
    assert [job.id for job in sea.data] == [made[3].id, made[0].id]
    assert [job.id for job in (await jobs.list(metadata={"team": "sea"}, after=made[3].id)).data] == [made[0].id]
    assert len((await jobs.list(metadata={'quo"te': "é", "team": "land"})).data) == 1
    assert (await jobs.list(metadata={"team": "air"})).data == []
    none = await jobs.list(extra_query={"metadata": "null"})
    assert [job.id for job in none.data] == [made[4].id, made[2].id]


async def test_another_projects_job_answers_as_one_that_does_not_exist(trainer: Running, client: Client) -> None:
    made = await client.create()
    other = trainer.client("other")
    jobs = other.openai.fine_tuning.jobs
    assert (await jobs.list()).data == []
    asked: list[Any] = [jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list]
    for ask in asked:
        told = []
        for job_id in (made.id, "ftjob-none"):
            with pytest.raises(openai.NotFoundError) as refused:
                await ask(job_id)
            assert refused.value.body is not None
            told.append(json.dumps(refused.value.body).replace(job_id, "ID"))
        assert told[0] == told[1]
        assert '"code": "not_found"' in told[0]
    with pytest.raises(openai.NotFoundError):
        await jobs.list(after=made.id)


async def test_the_same_idempotency_key_gives_the_same_job(trainer: Running, client: Client) -> None:
    told = {"idempotency-key": "once", "x-hatrack-job-key": KEY, "x-hatrack-job-key-id": "k",
            CONTEXT_HEADER: context()}  # fmt: skip
    body = {"model": "tiny", "training_file": "train"}
    first = await client.http.post("/v1/fine_tuning/jobs", json=body, headers=told)
    again = await client.http.post("/v1/fine_tuning/jobs", json=dict(reversed(body.items())), headers=told)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["id"] == again.json()["id"]
    assert "x-hatrack-replayed" not in first.headers
    assert again.headers["x-hatrack-replayed"] == "true"
    other = await client.http.post("/v1/fine_tuning/jobs", json=body | {"seed": 1}, headers=told)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    elsewhere = await trainer.client("other").http.post("/v1/fine_tuning/jobs", json=body, headers=told)
    assert elsewhere.json()["id"] != first.json()["id"]
    assert len((await client.openai.fine_tuning.jobs.list()).data) == 1
    assert len(trainer.trainer.jobs.directories.ids()) == 2


async def test_a_job_that_names_a_dataset_shows_its_file_and_keeps_its_version(
    trainer: Running, client: Client
) -> None:
    """The name may mean another file by the time of a retry, whose key and body are those of the first request."""
    body = {"model": "tiny", "training_file": "support", "metadata": {"hold": "1"}}
    told = {"idempotency-key": "once", "x-hatrack-job-key": KEY, "x-hatrack-job-key-id": "k"}
    resolved = context(datasets={"training_file": "support@3"})
    first = await client.http.post("/v1/fine_tuning/jobs", json=body, headers=told | {CONTEXT_HEADER: resolved})
    assert (first.status_code, first.json()["training_file"]) == (200, "train")
    spec = trainer.trainer.jobs.directories.read(first.json()["id"], protocol.SPEC, JobSpec)
    assert spec is not None
    assert (spec.training_file.id, spec.datasets) == ("train", {"training_file": "support@3"})
    later = context(content=b"{}\n{}", datasets={"training_file": "support@4"})
    again = await client.http.post("/v1/fine_tuning/jobs", json=body, headers=told | {CONTEXT_HEADER: later})
    replay = await client.http.post("/internal/jobs/replay", json=body, headers=told)
    for answer in (again, replay):
        assert answer.json()["id"] == first.json()["id"]
        assert answer.headers["x-hatrack-replayed"] == "true"


async def test_a_project_may_have_so_many_open_jobs(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> None:
    async with running(tmp_path, base_dir, gateway, max_queued=2) as trainer:
        client = trainer.client()
        made = [await client.create(metadata={"hold": "1"}) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as refused:
            await client.create()
        assert refused.value.code == "too_many_jobs"
        await trainer.client("other").create(metadata={"hold": "1"})
        assert (await client.openai.fine_tuning.jobs.cancel(made[1].id)).status == "cancelled"
        await client.create(metadata={"hold": "1"})


async def test_nobody_but_the_gateway_is_let_in(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> None:
    async with running(tmp_path, base_dir, gateway, secret="a-secret-of-two-sides") as trainer:
        assert (await trainer.client().openai.fine_tuning.jobs.list()).data == []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(trainer.app), base_url="http://t") as stranger:
            for shown in ({}, {"x-hatrack-trainer-secret": "a-secret-of-another"}):
                answer = await stranger.get("/v1/fine_tuning/jobs", headers=gateway_headers() | shown)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_trainer_secret")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/fine_tuning/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/fine_tuning/jobs?limit=0", 400, "invalid_value"),
        ("GET", "/v1/fine_tuning/jobs?order=asc", 400, "invalid_value"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/report", 404, "not_found"),
        ("POST", "/v1/fine_tuning/jobs", 400, "invalid_value"),
    ],
)
async def test_every_error_has_one_shape(client: Client, method: str, path: str, status: int, code: str) -> None:
    answer = await client.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


def test_the_process_that_answers_loads_no_model_library() -> None:
    code = (
        "import sys, trainer.__main__; print(sorted({'torch', 'transformers', 'peft', 'datasketch'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert found.stdout == "[]\n"


async def test_requests_without_a_project_are_refused(trainer: Running) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(trainer.app), base_url="http://t") as stranger:
        answer = await stranger.get("/v1/fine_tuning/jobs")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-hatrack-project")


async def test_events_of_another_job_are_no_place_in_this_one(client: Client) -> None:
    made = await client.create()
    for after in ("ftevent-0-1", f"ftevent-{made.id[6:]}-x", "nonsense"):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.openai.fine_tuning.jobs.list_events(made.id, after=after)
        assert refused.value.param == "after"


async def test_a_full_disk_makes_no_half_job(trainer: Running, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("trainer.runs.directories.publish", full)
    with pytest.raises(openai.APIStatusError) as refused:
        await client.create()
    assert (refused.value.status_code, refused.value.code) == (507, "disk_full")
    assert list(trainer.trainer.jobs.directories.directory.iterdir()) == []
    assert (await client.openai.fine_tuning.jobs.list()).data == []
