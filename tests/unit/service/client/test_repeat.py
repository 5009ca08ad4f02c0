"""`jobs.repeat`: a version's recipe as a new job, and why it cannot be done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.errors import AdapterError
from service.cli.main import app
from service.client import ClientError, HatrackClient
from tests.support.http import serving

RESOLVED = {
    "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5, "learning_rate": 6.5e-4, "lora_rank": 16,
    "lora_alpha": 32.0, "target_modules": ["q_proj"], "max_length": 512,
}  # fmt: skip


@dataclass
class Trained:
    """A gateway that knows one version, its job and its data; records the jobs that are asked for."""

    lineage: dict[str, Any] = field(default_factory=lambda: {"job": "ftjob-1", "datasets": {}})
    job: dict[str, Any] = field(
        default_factory=lambda: {
            "id": "ftjob-1", "model": "tiny-base", "training_file": "file-1", "validation_file": None, "seed": 7,
            "metadata": {"adapter": "voice", "strict": "true", "note": "mine", "hatrack_verdict": "pass"},
            "hyperparameters": RESOLVED,
            "hatrack": {
                "requested": {"n_epochs": "auto", "learning_rate_multiplier": 0.5, "metric": "exact_match"},
                "plan": {"chosen": {}},
            },
        }
    )  # fmt: skip
    datasets: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=lambda: {"file-1"})
    hidden: set[str] = field(default_factory=set)
    created: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        found: dict[str, Any] | None = None
        if path == "/v1/adapters/voice/versions/3":
            found = {"metadata": {"lineage": self.lineage} if self.lineage else {}}
        elif (method, path) == ("POST", "/v1/fine_tuning/jobs"):
            self.created.append(json.loads(body))
            found = self.job | {"id": "ftjob-2", "status": "queued"}
        elif path == "/v1/fine_tuning/jobs/ftjob-1" and "ftjob-1" not in self.hidden:
            found = self.job
        elif path.startswith("/v1/files/") and path[10:] in self.files:
            found = {"id": path[10:]}
        elif path.startswith("/v1/datasets/") and (label := path[13:].replace("/versions/", "@")) in self.datasets:
            found = {"file": self.datasets[label]}
        if found is None:
            return 404, json.dumps({"error": {"code": "not_found", "message": "no"}}).encode(), {}
        return 200, json.dumps(found).encode(), {"content-type": "application/json"}


@pytest.fixture
def trained() -> Iterator[Trained]:
    found = Trained()
    with serving(found.answer) as url:
        found.url = url
        yield found


@pytest.fixture
def client(trained: Trained) -> Iterator[HatrackClient]:
    with HatrackClient(trained.url, "hk-test") as opened:
        yield opened


def test_the_resolved_hyperparameters_seed_and_options_are_asked_for_again(
    client: HatrackClient, trained: Trained
) -> None:
    assert client.fine_tuning.jobs.repeat("voice@3")["id"] == "ftjob-2"
    (body,) = trained.created
    assert (body["model"], body["training_file"], body["seed"]) == ("tiny-base", "file-1", 7)
    assert "validation_file" not in body
    assert body["metadata"] == {"adapter": "voice", "strict": "true", "note": "mine"}
    rate = {"learning_rate_multiplier"}  # the rate that it led to is sent instead
    expected = {name: value for name, value in RESOLVED.items() if name not in rate} | {"metric": "exact_match"}
    assert body["method"]["supervised"]["hyperparameters"] == expected


def test_for_another_base_only_what_was_requested_is_asked_for(client: HatrackClient, trained: Trained) -> None:
    trained.job["hatrack"]["requested"] |= {"learning_rate": 2e-3, "target_modules": ["q_proj"], "lora_rank": 8}
    client.fine_tuning.jobs.repeat("voice@3", base="wide-base")
    (body,) = trained.created
    assert (body["model"], body["training_file"], body["seed"]) == ("wide-base", "file-1", 7)
    expected = {"n_epochs": "auto", "learning_rate_multiplier": 0.5, "metric": "exact_match", "lora_rank": 8}
    assert body["method"]["supervised"]["hyperparameters"] == expected, "a rate and modules are of one base"


def test_the_method_of_the_job_is_asked_for_again(client: HatrackClient, trained: Trained) -> None:
    trained.job["method"] = {"type": "dpo", "dpo": {"hyperparameters": RESOLVED}}
    trained.job["hyperparameters"] = RESOLVED | {"beta": 0.2}
    client.fine_tuning.jobs.repeat("voice@3")
    client.fine_tuning.jobs.repeat("voice@3", base="wide-base", start="voice@9", metadata={"rebase": "x"})
    again, moved = trained.created
    assert (again["method"]["type"], moved["method"]["type"]) == ("dpo", "dpo")
    assert again["method"]["dpo"]["hyperparameters"]["beta"] == 0.2
    assert (moved["model"], moved["metadata"]["rebase"]) == ("voice@9", "x")


def test_an_adapter_that_the_hyperparameters_named_is_not_named_twice(client: HatrackClient, trained: Trained) -> None:
    trained.job["metadata"] = None
    trained.job["hatrack"]["requested"] = {"adapter": "voice"}
    client.fine_tuning.jobs.repeat("voice@3")
    (body,) = trained.created
    assert body["metadata"] == {}
    assert body["method"]["supervised"]["hyperparameters"]["adapter"] == "voice"


def test_data_is_named_by_its_dataset_while_that_has_the_same_file(client: HatrackClient, trained: Trained) -> None:
    trained.lineage["datasets"] = {"training_file": "support@3", "validation_file": "held@1"}
    trained.job["validation_file"] = "file-2"
    trained.files.add("file-2")
    trained.datasets = {"support@3": "file-1", "held@1": "file-other"}  # held was deleted, and made anew
    client.fine_tuning.jobs.repeat("voice@3")
    (body,) = trained.created
    assert (body["training_file"], body["validation_file"]) == ("support@3", "file-2")


@pytest.mark.parametrize("lineage", [{}, {"job": None, "data": []}])
def test_a_version_that_was_pushed_by_hand_is_refused(
    client: HatrackClient, trained: Trained, lineage: dict[str, Any]
) -> None:
    trained.lineage = lineage
    with pytest.raises(ClientError, match="pushed") as refused:
        client.fine_tuning.jobs.repeat("voice@3")
    assert refused.value.code == "not_trained_here"


def test_a_job_or_data_that_is_gone_is_named(client: HatrackClient, trained: Trained) -> None:
    trained.files.clear()
    with pytest.raises(ClientError, match="file-1, was deleted") as refused:
        client.fine_tuning.jobs.repeat("voice@3")
    assert refused.value.code == "data_gone"
    trained.hidden.add("ftjob-1")
    with pytest.raises(ClientError, match="ftjob-1, which no longer exists") as refused:
        client.fine_tuning.jobs.repeat("voice@3")
    assert refused.value.code == "job_gone"
    assert trained.created == []


def test_a_reference_without_a_version_is_refused(client: HatrackClient) -> None:
    with pytest.raises(ClientError, match="Name a version"):
        client.fine_tuning.jobs.repeat("voice")
    with pytest.raises(AdapterError):
        client.fine_tuning.jobs.repeat("voice@x")


def test_the_command_repeats_and_takes_nothing_that_would_change_the_job(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATRACK_URL", trained.url)
    monkeypatch.setenv("HATRACK_KEY", "hk-test")
    done = CliRunner().invoke(app, ["train", "--again", "voice@3", "--no-follow"])
    assert done.exit_code == 0, done.output
    assert "ftjob-2 repeats the training of voice@3" in done.output
    for wrong in (
        ["--again", "voice@3", "--set", "n_epochs=9"],
        ["--again", "voice@3", "--name", "other"],
        ["--again", "voice"],
    ):
        refused = CliRunner().invoke(app, ["train", *wrong], env={"COLUMNS": "200"})
        assert refused.exit_code == 2
        assert "--again" in refused.output
    assert len(trained.created) == 1
