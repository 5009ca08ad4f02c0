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
    return {"id": name, "object": "model", "parent": parent, "type": kind, "root": name}


def version(
    number: int, base: str | None = OLD, digest: str | None = "d" * 64, job: str | None = None, **lineage: str
) -> dict[str, Any]:
    metadata = {} if job is None else {"lineage": {"job": job, **lineage}}
    settings = {} if digest else {"system_prompt": "Be brief."}
    return {"version": number, "base_name": base, "digest": digest, "metadata": metadata, "settings": settings}


def trained(job_id: str, **changes: Any) -> dict[str, Any]:
    """A job that has trained a version for the old base."""
    return {
        "id": job_id, "status": "succeeded", "model": OLD, "training_file": "file-1", "validation_file": None,
        "seed": 7, "metadata": {"adapter": "voice"}, "hyperparameters": {}, "fine_tuned_model": None, "error": None,
        "method": {"type": "supervised"}, "hatrack": {"verdict": None, "requested": {}, "plan": None}, **changes,
    }  # fmt: skip


@dataclass
class Fleet:
    """A gateway with two bases, which trains and judges at once; records what it is asked to make.

    `voice` was trained here, `prompt` has no weights, `alien` was pushed, `done` has moved, `torn` is split.
    """

    passes: bool = True
    judged: bool = True
    judges_jobs: bool = True
    trains: bool = True
    voices: list[dict[str, Any]] = field(
        default_factory=lambda: [version(1), version(2, job="ftjob-0"), version(3, job="ftjob-1")]
    )
    prompts: list[dict[str, Any]] = field(default_factory=lambda: [version(1, digest=None)])
    live: dict[str, int] = field(default_factory=lambda: {"voice": 3, "prompt": 1})
    jobs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {job_id: trained(job_id) for job_id in ("ftjob-0", "ftjob-1")}
    )
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost_files: set[str] = field(default_factory=set)
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def adapters(self) -> list[dict[str, Any]]:
        found: dict[str, tuple[dict[str, int | None], list[dict[str, Any]]]] = {
            "voice": ({"live": self.live["voice"]}, self.voices),
            "prompt": ({"live": self.live["prompt"]}, self.prompts),
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
            self._finish(path.split("/")[-2])
            event = {"id": "e1", "type": "message", "level": "info", "message": "done", "data": {}}
            return 200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode(), {"content-type": "text/event-stream"}
        found = self._made(path) if method == "POST" else self._found(path)
        status = 200 if found is not None else 404
        shown = found if found is not None else {"error": {"code": "not_found", "message": "no"}}
        return status, json.dumps(shown).encode(), {"content-type": "application/json"}

    def _made(self, path: str) -> Any:
        body = self.made[-1][1]
        if path == "/v1/fine_tuning/jobs":
            job_id = f"ftjob-{len(self.jobs)}"
            self.jobs[job_id] = trained(job_id, status="queued", model=body["model"], metadata=body["metadata"])
            return self.jobs[job_id]
        if path == "/v1/adapters":
            if len(self.prompts) == 1:
                self.prompts.append(version(2, NEW, digest=None))
            return self.prompts[1]
        evaluation = self.evaluations["eval-1"] = {"id": "eval-1", "status": "queued", "model": body["model"]}
        return evaluation

    def _finish(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job["status"] == "succeeded":
            return
        if not self.trains:
            job |= {"status": "failed", "error": {"message": "it does not fit"}}
            return
        number = len(self.voices) + 1
        self.voices.append(version(number, NEW, job=job_id))
        never = job["metadata"].get("promote") == "never"
        job |= {"status": "succeeded", "fine_tuned_model": f"voice@{number}"}
        if self.judges_jobs:
            job["hatrack"] = job["hatrack"] | {"verdict": {"verdict": "pass", "sentence": "It is better."}}
            if self.passes and not never:
                self.live["voice"] = number

    def _found(self, path: str) -> Any:
        if path == "/v1/models":
            cards = [card(OLD), card(NEW), card("voice", OLD), card("orphan"), card("mini", kind="embedding")]
            cards[3]["root"] = "orphan@1"
            return {"data": cards}
        if path == "/v1/fine_tuning/jobs":
            return {"data": list(self.jobs.values())[::-1], "has_more": False}
        if path == "/v1/evaluations":
            return {"data": list(self.evaluations.values()), "has_more": False}
        if path.startswith("/v1/fine_tuning/jobs/"):
            return self.jobs.get(path.rpartition("/")[2])
        if path.startswith("/v1/files/"):
            file_id = path.rpartition("/")[2]
            return None if file_id in self.lost_files else {"id": file_id}
        if path == "/v1/evaluations/eval-1":
            self.evaluations["eval-1"] |= {"status": "succeeded", "sentence": "So it is."}
            name, _, number = self.evaluations["eval-1"]["model"].partition("@")
            self.live[name] = int(number) if self.passes else self.live[name]
            return self.evaluations["eval-1"]
        return self._adapter(path)

    def _adapter(self, path: str) -> Any:
        if path == "/v1/adapters":
            return {"data": self.adapters(), "has_more": False}
        name, *below = path.removeprefix("/v1/adapters/").split("/")
        adapter = next(each for each in self.adapters() if each["name"] == name)
        if not below:
            return adapter
        number = int(below[1])
        found = next(each for each in adapter["versions"] if each["version"] == number)
        if below[2:] != ["verdicts"]:
            return found
        was_judged = self.judged if found["base_name"] != NEW else "eval-1" in self.evaluations
        verdicts = [{"id": "verdict-1", "sentence": "So it is.", "files": {"held_out": "file-9"}}]
        return {"data": verdicts if was_judged else [], "has_more": False}


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
    monkeypatch.setattr("service.cli.rebase.POLL_S", 0.01)
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


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_a_terminal_it_needs_yes(fleet: Fleet, rebase: Rebase, options: list[str]) -> None:
    refused = rebase("--to", NEW, *options)
    assert refused.exit_code == 2, refused.output
    assert "give --yes" in refused.stderr
    assert fleet.made == []
    assert rebase("--to", NEW, "--yes", *options).exit_code == 0
    assert len(fleet.made) == 3


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


def jobs_of(fleet: Fleet) -> list[tuple[str, str, str | None]]:
    """The models that jobs were asked for, what each does again, and whether it may promote."""
    bodies = [body for path, body in fleet.made if path == "/v1/fine_tuning/jobs"]
    return [(body["model"], body["metadata"]["rebase"], body["metadata"].get("promote")) for body in bodies]


def test_what_a_version_was_continued_from_is_trained_first(fleet: Fleet, rebase: Rebase) -> None:
    fleet.voices[2] = version(3, job="ftjob-1", parent="voice@2")
    fleet.jobs["ftjob-1"]["hatrack"]["requested"] = {"lora_rank": 8, "learning_rate": 1e-3, "n_epochs": 2}
    plan = json.loads(rebase("voice", "--to", NEW, "--dry-run", "--json").stdout)
    assert [(step["version"], step["is_ancestor"], step["start"]) for step in plan] == [
        ("voice@2", True, None),
        ("voice@3", False, "voice@2"),
    ]
    done = rebase("voice", "--to", NEW, "--yes")
    assert done.exit_code == 0, done.output
    assert jobs_of(fleet) == [(NEW, "voice@2 for new-base", "never"), ("voice@4", "voice@3 for new-base", None)]
    options = fleet.made[1][1]["method"]["supervised"]["hyperparameters"]
    assert options == {"n_epochs": 2}, "the rank is that of the version that it continues"
    assert fleet.live["voice"] == 5


def test_without_its_ancestor_a_version_is_left(fleet: Fleet, rebase: Rebase) -> None:
    fleet.voices[2] = version(3, job="ftjob-1", parent="voice@1")
    (step,) = json.loads(rebase("voice", "--to", NEW, "--dry-run", "--json").stdout)
    assert step["way"] == "none"
    assert step["note"].startswith("it continues voice@1, which cannot be trained again: pushed from outside")
    fleet.voices[2] = version(3, job="ftjob-1", parent="gone@7")
    (step,) = json.loads(rebase("voice", "--to", NEW, "--dry-run", "--json").stdout)
    assert step["note"] == "it continues gone@7, which cannot be trained again: gone@7 no longer exists"


@pytest.mark.parametrize(("third", "second"), [("voice@3", "voice@1"), ("voice@2", "voice@3")])
def test_a_lineage_that_leads_back_to_itself_ends(fleet: Fleet, rebase: Rebase, third: str, second: str) -> None:
    fleet.voices[1:] = [version(2, job="ftjob-0", parent=second), version(3, job="ftjob-1", parent=third)]
    (step,) = json.loads(rebase("voice", "--to", NEW, "--dry-run", "--json").stdout)
    assert (step["version"], step["way"]) == ("voice@3", "none")
    assert "its lineage leads back to itself" in step["note"]


def test_an_ancestor_that_fails_keeps_its_heir_from_being_tried(fleet: Fleet, rebase: Rebase) -> None:
    fleet.voices[2] = version(3, job="ftjob-1", parent="voice@2")
    fleet.trains = False
    done = rebase("voice", "--to", NEW, "--yes")
    assert done.exit_code == 1
    assert len(jobs_of(fleet)) == 1
    assert "not tried: it continues voice@2, which was not trained for new-base" in done.output


def test_an_interrupted_move_goes_on_where_it_was(fleet: Fleet, rebase: Rebase) -> None:
    fleet.voices[2] = version(3, job="ftjob-1", parent="voice@2")
    fleet.jobs["ftjob-2"] = trained("ftjob-2", metadata={"rebase": "voice@2 for new-base"}, fine_tuned_model="voice@4")
    fleet.voices.append(version(4, NEW, job="ftjob-2"))
    fleet.jobs["ftjob-3"] = trained("ftjob-3", status="running", metadata={"rebase": "voice@3 for new-base"})
    plan = " ".join(rebase("voice", "--to", NEW, "--dry-run").output.split())
    assert "voice@2 old-base go on ftjob-2 of an earlier attempt: succeeded" in plan
    assert "voice@3 old-base go on ftjob-3 of an earlier attempt: running" in plan
    done = rebase("voice", "--to", NEW, "--yes")
    assert done.exit_code == 0, done.output
    assert fleet.made == [], "nothing is asked for twice"
    assert fleet.live["voice"] == 5
    assert "Everything that is live serves on new-base." in rebase("voice", "--to", NEW).output


@pytest.mark.parametrize("before", [{"status": "failed"}, {"fine_tuned_model": "voice@9"}, {"other": True}])
def test_what_failed_or_was_deleted_is_done_again(fleet: Fleet, rebase: Rebase, before: dict[str, Any]) -> None:
    base = "other-base" if before.pop("other", False) else NEW
    fleet.jobs["ftjob-2"] = trained("ftjob-2", metadata={"rebase": f"voice@3 for {base}"}, **before)
    assert rebase("voice", "--to", NEW, "--yes").exit_code == 0
    assert jobs_of(fleet) == [(NEW, "voice@3 for new-base", None)]


def test_a_version_whose_judging_was_cut_off_is_judged(fleet: Fleet, rebase: Rebase) -> None:
    fleet.judges_jobs = False
    done = rebase("voice", "--to", NEW, "--yes")
    assert done.exit_code == 0, done.output
    (_, asked) = fleet.made[1]
    assert (asked["model"], asked["held_out"], asked["promote"]) == ("voice@4", "file-9", "auto")
    assert fleet.live["voice"] == 4


def test_an_evaluation_that_is_under_way_or_over_is_not_asked_for_again(fleet: Fleet, rebase: Rebase) -> None:
    fleet.prompts.append(version(2, NEW, digest=None))
    fleet.passes = False
    fleet.judges_jobs = False
    fleet.evaluations["eval-0"] = {"id": "eval-0", "status": "running", "model": "prompt@7", "candidate": None}
    assert rebase("prompt", "--to", NEW, "--yes").exit_code == 1
    assert [path for path, _ in fleet.made] == ["/v1/adapters", "/v1/evaluations"]
    done = rebase("prompt", "--to", NEW, "--yes")
    assert [path for path, _ in fleet.made[2:]] == ["/v1/adapters"], "its verdict stands"
    assert "So it is." in done.output


def test_data_that_is_gone_keeps_no_other_from_being_moved(fleet: Fleet, rebase: Rebase) -> None:
    fleet.lost_files.add("file-1")
    done = rebase("--to", NEW, "--yes")
    assert done.exit_code == 1
    assert "The data of voice@3, file-1, was deleted or is hidden from the key" in done.output
    assert fleet.live["prompt"] == 2
