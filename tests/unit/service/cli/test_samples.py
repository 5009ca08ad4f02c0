"""The sample adapters of `hatrack up`: which are trained at a start, and what becomes of them."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from service.cli import run, samples
from service.client import HatrackClient
from service.client.settings import ClientSettings
from service.config import Settings
from service.server.stopping import Stopping

READY = {"status": "ready", "base": "tiny"}


class Gateway:
    """Answers as a gateway that has the given adapters and jobs, newest first; `made` has the new jobs' bodies."""

    def __init__(self, adapters: Mapping[str, dict[str, int | None]], jobs: list[dict[str, Any]]) -> None:
        self.adapters = adapters
        self.jobs = jobs
        self.uploads: list[bytes] = []
        self.made: list[dict[str, Any]] = []
        self.moved: list[tuple[str, dict[str, Any]]] = []
        self.trainer = ["up"]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match (request.method, request.url.path):
            case ("GET", "/readyz"):
                state = self.trainer.pop(0) if len(self.trainer) > 1 else self.trainer[0]
                return httpx.Response(200, json=READY | {"trainer": {"state": state}})
            case ("GET", "/v1/adapters"):
                data = [{"name": name, "aliases": aliases, "versions": []} for name, aliases in self.adapters.items()]
                return httpx.Response(200, json={"object": "list", "data": data, "has_more": False})
            case ("GET", "/v1/fine_tuning/jobs"):
                return httpx.Response(200, json={"object": "list", "data": self.jobs, "has_more": False})
            case ("POST", "/v1/files"):
                self.uploads.append(request.read())
                return httpx.Response(200, json={"id": f"file-{len(self.uploads)}"})
            case ("POST", "/v1/fine_tuning/jobs"):
                self.made.append(json.loads(request.content))
                return httpx.Response(200, json={"id": f"ftjob-{len(self.made)}"})
            case ("GET", path) if path.startswith("/v1/fine_tuning/jobs/"):
                job = next(job for job in self.jobs if job["id"] == path.split("/")[4])
                if not path.endswith("/events"):
                    return httpx.Response(200, json={"hatrack": {}} | job)
                if "text/event-stream" not in request.headers.get("accept", ""):
                    return httpx.Response(200, json={"object": "list", "data": [], "has_more": False})
                return httpx.Response(200, text="data: [DONE]\n\n", headers={"content-type": "text/event-stream"})
            case ("GET", path):
                name = path.removeprefix("/v1/adapters/")
                return httpx.Response(200, json={"name": name, "aliases": self.adapters[name], "versions": []})
            case ("PUT", path):
                self.moved.append((path, json.loads(request.content)))
                return httpx.Response(200, json={})
        raise AssertionError(request)


def job(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"id": f"ftjob-{name}", "status": status, "metadata": {"hatrack_sample": name}, **more}


def start(gateway: Gateway) -> dict[str, str]:
    files = samples.sample_files()
    assert files is not None
    with HatrackClient("http://x", "k", transport=httpx.MockTransport(gateway)) as client:
        return samples.start(client, files)


def test_both_are_trained_on_all_their_pairs_and_judged_on_what_they_never_saw() -> None:
    gateway = Gateway({}, [])
    assert start(gateway) == {"tidewater": "ftjob-1", "pemberton": "ftjob-2"}
    [tidewater, _] = gateway.made
    assert (tidewater["training_file"], tidewater["validation_file"]) == ("file-1", "file-2")
    assert gateway.uploads[0].count(b'"messages"') == 155
    assert gateway.uploads[1].count(b'"messages"') == 40
    assert (tidewater["model"], tidewater["method"]["supervised"]["hyperparameters"]["sampling"]) == (
        "tiny",
        {"temperature": 0.2},
    )


@pytest.mark.parametrize(
    ("adapters", "jobs", "followed", "made"),
    [
        ({"tidewater": {"live": 1}, "pemberton": {"live": 1}}, [], [], 0),
        ({}, [job("tidewater", "running"), job("pemberton", "queued")], ["tidewater", "pemberton"], 0),
        ({"tidewater": {}}, [job("tidewater", "running")], ["tidewater", "pemberton"], 1),
        ({}, [job("tidewater", "failed"), job("pemberton", "cancelled")], ["tidewater"], 1),
        ({}, [job("tidewater", "succeeded"), job("pemberton", "succeeded")], [], 0),
        ({"tidewater": {"candidate": 1}, "pemberton": {"live": 1}}, [job("tidewater", "succeeded")], ["tidewater"], 0),
    ],
    ids=[
        "there already",
        "interrupted by a stop",
        "one of them judged",
        "failed and cancelled",
        "deleted",
        "stopped before it went live",
    ],
)
def test_what_is_there_or_was_done_away_with_is_not_trained_again(
    adapters: dict[str, dict[str, int | None]], jobs: list[dict[str, Any]], followed: list[str], made: int
) -> None:
    gateway = Gateway(adapters, jobs)
    assert list(start(gateway)) == followed
    assert len(gateway.made) == made


def follow(gateway: Gateway) -> tuple[bool, str]:
    shown = io.StringIO()
    with HatrackClient("http://x", "k", transport=httpx.MockTransport(gateway)) as client:
        answers = samples.follow(client, "tidewater", "ftjob-tidewater", Console(file=shown, width=200))
    return answers, shown.getvalue()


def test_one_that_did_not_pass_goes_live_all_the_same_and_says_so() -> None:
    ended = job("tidewater", "succeeded", fine_tuned_model="tidewater@1")
    ended["metadata"]["hatrack_verdict"] = "not_enough_evidence"
    gateway = Gateway({"tidewater": {"candidate": 1}}, [ended])
    answers, shown = follow(gateway)
    assert answers
    assert gateway.moved == [("/v1/adapters/tidewater/aliases/live", {"version": 1, "force": True})]
    assert "not enough evidence; live all the same, as a sample (hatrack report tidewater@1)" in shown


def test_one_that_passed_is_left_as_its_job_left_it() -> None:
    ended = job("tidewater", "succeeded", fine_tuned_model="tidewater@1")
    ended["metadata"]["hatrack_verdict"] = "pass"
    gateway = Gateway({"tidewater": {"live": 1}}, [ended])
    assert follow(gateway)[0]
    assert gateway.moved == []


def test_one_that_could_not_be_trained_says_why_and_ends_nothing() -> None:
    gateway = Gateway({}, [job("tidewater", "failed", error={"code": "insufficient_memory", "message": "8 GiB short"})])
    answers, shown = follow(gateway)
    assert not answers
    assert "tidewater was not trained: 8 GiB short" in shown


def test_the_first_run_says_what_to_try_as_soon_as_the_engine_answers_and_then_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended = [
        job(name, "succeeded", fine_tuned_model=f"{name}@1", metadata={"hatrack_verdict": "pass"})
        | {"id": f"ftjob-{number}"}
        for number, name in enumerate(samples.NAMES, 1)
    ]
    gateway, happened = Gateway({}, ended), list[str]()
    states = [{"status": "starting", "engine": "loading"}, {"status": "starting", "engine": "loading"}]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz" and states:
            happened.append("not ready")
            return httpx.Response(503, json=states.pop(0))
        if request.method == "POST":
            happened.append(f"POST {request.url.path}")
        if request.url.path.startswith("/v1/adapters/"):
            return httpx.Response(200, json={"name": "x", "aliases": {"live": 1}, "versions": []})
        return gateway(request)

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            happened.extend(line for line in text.splitlines() if line.strip())
            return len(text)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(run, "HatrackClient", partial(HatrackClient, transport=transport))
    monkeypatch.setattr(run, "console", Console(file=Terminal(), width=200))
    run._first_run(Settings(home=tmp_path, admin_key="a-key-of-sixteen-characters"))

    [ready] = [place for place, line in enumerate(happened) if line.startswith("Hatrack is ready at")]
    made = [place for place, line in enumerate(happened) if line == "POST /v1/fine_tuning/jobs"]
    tries = [line for line in happened if "hatrack chat" in line]
    assert happened[:2] == ["not ready", "not ready"]
    assert len(made) == 2
    assert ready < min(made)
    assert tries[-2:] == [f"  .venv/bin/hatrack chat {name} 'Where is my parcel?'" for name in samples.NAMES]


@pytest.mark.parametrize(
    ("states", "answers"), [(["starting", "down", "up"], True), (["off"], False), (["down"], False)], ids=str
)
def test_a_trainer_that_starts_later_than_the_engine_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, states: list[str], answers: bool
) -> None:
    monkeypatch.setattr(samples, "POLL_S", 0.001)
    gateway = Gateway({}, [])
    gateway.trainer = states
    with HatrackClient("http://x", "k", transport=httpx.MockTransport(gateway)) as client:
        assert samples.wait_for_trainer(client, 60 if answers else 0.05) is answers


@pytest.mark.parametrize(("url", "is_named"), [("http://127.0.0.1:8000", False), ("http://127.0.0.1:8123", True)])
def test_what_to_try_works_in_a_shell_without_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, is_named: bool
) -> None:
    printed = run.try_this(url, ["tiny"], key_file=tmp_path / "admin.key")
    named = re.search(r"^ *export HATRACK_URL=(.*)$", printed, re.MULTILINE)
    assert bool(named) is is_named
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("HATRACK_URL", "HATRACK_PROFILE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if named:
        monkeypatch.setenv("HATRACK_URL", named[1])
    assert ClientSettings().gateway_url == url


@pytest.mark.parametrize("terminal", [True, False])
def test_whoever_presses_ctrl_c_is_told_once_that_it_stops(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(run, "console", Console(file=printed, force_terminal=terminal, width=200))
    server = run._Server(uvicorn.Config(FastAPI()), Stopping(), 0)
    for _ in range(2):
        server.handle_exit(signal.SIGINT, None)
    assert printed.getvalue().count("Stopping") == int(terminal)
    assert (server.should_exit, server.force_exit) == (True, True)
