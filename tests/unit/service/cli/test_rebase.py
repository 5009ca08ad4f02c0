"""`hatrack rebase`: which versions are made anew for another base, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from tests.support.http import serving

OLD, NEW = "old-base", "new-base"
Rebase = Callable[..., Result]


def card(name: str, parent: str | None = None, kind: str = "chat") -> dict[str, Any]:
    return {"id": name, "object": "model", "parent": parent, "type": kind}


def version(
    number: int, base: str | None = OLD, digest: str | None = "d" * 64, job: str | None = None
) -> dict[str, Any]:
    metadata = {} if job is None else {"lineage": {"job": job}}
    settings = {} if digest else {"system_prompt": "Be brief."}
    return {"version": number, "base_name": base, "digest": digest, "metadata": metadata, "settings": settings}


@dataclass
class Fleet:
    """A gateway with two bases; records what it is asked to make.

    `voice` was trained here, `prompt` has no weights, `alien` was pushed, `done` has moved, `torn` is split.
    """

    passes: bool = True
    judged: bool = True
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def adapters(self) -> list[dict[str, Any]]:
        live = {"prompt": 1}
        if self.passes and any(path == "/v1/evaluations" for path, _ in self.made):
            live["prompt"] = 2
        found = {
            "voice": ({"live": 3}, [version(2, job="ftjob-0"), version(3, job="ftjob-1")]),
            "prompt": ({"live": live["prompt"]}, [version(1, digest=None), version(2, NEW, digest=None)]),
            "alien": ({"live": 1}, [version(1)]),
            "done": ({"live": 1}, [version(1, NEW)]),
            "torn": ({"live": None}, [version(1)]),
            "unborn": ({}, [version(1)]),
        }
        return [{"name": name, "aliases": aliases, "versions": all_} for name, (aliases, all_) in found.items()]

    def answer(self, method: str, path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        path = path.partition("?")[0]
        if method == "POST":
            self.made.append((path, json.loads(body)))
        if path.endswith("/events"):
            event = {"id": "e1", "type": "message", "level": "info", "message": "done", "data": {}}
            return 200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode(), {"content-type": "text/event-stream"}
        found = self._found(method, path)
        status = 200 if found is not None else 404
        shown = found if found is not None else {"error": {"code": "not_found", "message": "no"}}
        return status, json.dumps(shown).encode(), {"content-type": "application/json"}

    def _found(self, method: str, path: str) -> Any:
        adapters = self.adapters()
        verdict = {"sentence": "It is better.", "live": self.passes}
        job = {
            "id": "ftjob-2", "status": "succeeded", "model": OLD, "training_file": "file-1", "validation_file": None,
            "seed": 7, "metadata": {}, "hyperparameters": {}, "fine_tuned_model": "voice@4",
            "hatrack": {"adapter": "voice", "verdict": verdict, "requested": {}, "plan": None},
        }  # fmt: skip
        evaluation = {"id": "eval-1", "status": "succeeded", "sentence": "So it is."}
        known = {
            "/v1/models": {"data": [card(OLD), card(NEW), card("voice", OLD), card("mini", kind="embedding")]},
            "/v1/adapters": {"data": adapters, "has_more": False},
            "/v1/fine_tuning/jobs": job,
            "/v1/fine_tuning/jobs/ftjob-1": job | {"id": "ftjob-1"},
            "/v1/fine_tuning/jobs/ftjob-2": job,
            "/v1/files/file-1": {"id": "file-1"},
            "/v1/adapters/voice/versions/3": version(3, job="ftjob-1"),
            "/v1/adapters/prompt/versions/1": version(1, digest=None),
            "/v1/adapters/prompt": next(each for each in adapters if each["name"] == "prompt"),
            "/v1/evaluations": evaluation,
            "/v1/evaluations/eval-1": evaluation,
        }
        if path == "/v1/adapters/prompt/versions/1/verdicts":
            verdicts = [{"id": "verdict-1", "files": {"held_out": "file-9"}}] if self.judged else []
            return {"data": verdicts, "has_more": False}
        if (method, path) == ("POST", "/v1/adapters"):
            return version(2, NEW, digest=None)
        return known.get(path)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    found = Fleet()
    with serving(found.answer) as found.url:
        yield found


@pytest.fixture
def rebase(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Rebase:
    monkeypatch.setenv("HATRACK_URL", fleet.url)
    monkeypatch.setenv("HATRACK_KEY", "hk-test")
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: CliRunner().invoke(app, ["rebase", *arguments])


def test_a_dry_run_shows_every_way_and_does_nothing(fleet: Fleet, rebase: Rebase) -> None:
    done = rebase("--to", NEW, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    ways = {step["version"]: (step["base"], step["way"]) for step in json.loads(done.stdout)}
    assert ways == {
        "voice@3": (OLD, "train"),
        "prompt@1": (OLD, "push"),
        "alien@1": (OLD, "none"),
        "torn": (None, "none"),
    }
    assert fleet.made == []


def test_what_passes_goes_live_on_the_new_base(fleet: Fleet, rebase: Rebase) -> None:
    done = rebase("--to", NEW, "--yes")
    assert done.exit_code == 0, done.output
    paths = [path for path, _ in fleet.made]
    assert paths == ["/v1/fine_tuning/jobs", "/v1/adapters", "/v1/evaluations"]
    job, pushed, evaluation = (body for _, body in fleet.made)
    assert (job["model"], job["training_file"], job["seed"]) == (NEW, "file-1", 7)
    assert (pushed["base"], pushed["alias"], pushed["settings"]) == (NEW, "candidate", {"system_prompt": "Be brief."})
    assert (evaluation["model"], evaluation["held_out"], evaluation["promote"]) == ("prompt@2", "file-9", "auto")
    shown = " ".join(done.output.split())
    assert "voice@3 voice@4 yes It is better. prompt@1 prompt@2 yes So it is." in shown


def test_what_does_not_pass_is_told_and_leaves_with_1(fleet: Fleet, rebase: Rebase) -> None:
    fleet.passes = fleet.judged = False
    done = rebase("--to", NEW, "--yes")
    assert done.exit_code == 1
    assert "voice@3 voice@4 no It is better." in " ".join(done.output.split())
    assert "prompt@1 was never judged: try prompt@2" in done.output


def test_named_adapters_alone_are_moved(fleet: Fleet, rebase: Rebase) -> None:
    assert rebase("prompt", "--to", NEW, "--yes").exit_code == 0
    assert [path for path, _ in fleet.made] == ["/v1/adapters", "/v1/evaluations"]
    assert "Everything that is live serves on new-base." in rebase("done", "--to", NEW).output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--to", "mini"), 1, "The gateway serves no base `mini`; it serves old-base, new-base."),
        (("absent", "--to", NEW), 1, "There is no adapter `absent`."),
        ((), 2, "name the base with --to"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    fleet: Fleet, rebase: Rebase, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = rebase(*arguments)
    assert done.exit_code == code
    assert said in done.output
    assert fleet.made == []
