"""A job's `integrations` when it is created: what is wrong with one, and what has to be set up for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.requests import Integration
from tests.unit.trainer.tracking.test_tracking import MLFLOW, WANDB
from trainer.config import Settings, worker_environment
from trainer.errors import RequestError
from trainer.finetune.schemas import read_body
from trainer.finetune.tracked import requested_trackers
from trainer.tracking import available


def requested(*integrations: dict[str, Any]) -> list[Integration]:
    body = read_body({"model": "m", "training_file": "f", "integrations": list(integrations)}).body
    return body.integrations or []


@pytest.mark.parametrize(
    ("integrations", "param"),
    [
        ([{"type": "comet", "comet": {}}], "integrations.0.type"),
        ([{"type": "wandb"}], "integrations.0"),
        ([{"type": "wandb", "mlflow": {"experiment": "e"}}], "integrations.0"),
        ([WANDB | {"mlflow": {"experiment": "e"}}], "integrations.0"),
        ([{"type": "wandb", "wandb": {"project": ""}}], "integrations.0.wandb.project"),
        ([{"type": "wandb", "wandb": {"project": "p", "base_url": "http://x"}}], "integrations.0.wandb.base_url"),
        ([{"type": "mlflow", "mlflow": {"experiment": "e", "tags": ["a"]}}], "integrations.0.mlflow.tags"),
        ([{"type": "mlflow", "mlflow": {"experiment": "sea/support"}}], "integrations.0.mlflow.experiment"),
        ([{"type": "wandb", "wandb": {"project": "p" * 64}}], "integrations.0.wandb.project"),
        (
            [{"type": "mlflow", "mlflow": {"experiment": "e", "tags": {"mlflow.parentRunId": "0f3a"}}}],
            "integrations.0.mlflow.tags",
        ),
        (
            [{"type": "mlflow", "mlflow": {"experiment": "e", "tags": {"hatrack.verdict": "pass"}}}],
            "integrations.0.mlflow.tags",
        ),
        ([MLFLOW] * 6, "integrations"),
    ],
)
def test_what_is_wrong_with_an_integration_is_named(integrations: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        requested(*integrations)
    assert refused.value.param == param


def test_a_tracker_is_named_once_and_must_be_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Settings(mlflow_url="http://mlflow:5000", wandb_mode="offline")
    monkeypatch.setattr(available, "find_spec", lambda _name: object())
    assert requested_trackers(None, Settings()) == ()
    assert requested_trackers(requested(MLFLOW, WANDB), both) == ("mlflow", "wandb")
    with pytest.raises(RequestError, match="send it once"):
        requested_trackers(requested(MLFLOW, MLFLOW), both)
    for integration, words in ((MLFLOW, "HATRACK_TRAINER_MLFLOW_URL"), (WANDB, "HATRACK_TRAINER_WANDB_KEY")):
        with pytest.raises(RequestError, match=words) as refused:
            requested_trackers(requested(integration), Settings())
        assert (refused.value.param, refused.value.shown_code) == ("integrations.0.type", "integration_unavailable")
    monkeypatch.setattr(available, "find_spec", lambda _name: None)
    with pytest.raises(RequestError, match=r"pip install 'hatrack\[wandb\]'"):
        requested_trackers(requested(WANDB), both)


def test_an_entity_is_one_that_the_operator_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "find_spec", lambda _name: object())
    monkeypatch.setenv("HATRACK_TRAINER_WANDB_ENTITIES", "sea fleet")
    asked = requested({"type": "wandb", "wandb": {"project": "support", "entity": "fleet"}})
    assert requested_trackers(asked, Settings(wandb_mode="offline")) == ("wandb",)
    for allowed, words in (((), "allows none: leave it out"), (("sea", "land"), "allows 'sea', 'land'")):
        with pytest.raises(RequestError, match=words) as refused:
            requested_trackers(asked, Settings(wandb_mode="offline", wandb_entities=allowed))
        assert refused.value.param == "integrations.0.wandb.entity"


def test_no_worker_inherits_a_tracker_s_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_MLFLOW_TOKEN", "t")
    monkeypatch.setenv("HATRACK_TRAINER_WANDB_KEY", "k")
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere")
    assert not {"HATRACK_TRAINER_MLFLOW_TOKEN", "HATRACK_TRAINER_WANDB_KEY"} & worker_environment().keys()
    settings = Settings(wandb_key="k" * 40, wandb_url="https://wandb.example.com")
    environment = available._wandb_environment(settings, tmp_path)
    assert (environment["WANDB_API_KEY"], environment["WANDB_BASE_URL"]) == ("k" * 40, "https://wandb.example.com")
    assert environment["WANDB_MODE"] == "online"
