"""The fake gateway of the evaluations, and folders of evaluations that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.protocol.runs import EvaluationContext
from tests.unit.trainer.evaluate.conftest import KEY
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import (
    BASE,
    EvaluationGateway,
    jsonl,
    listening,
    rows,
    tuned_is_right,
)
from tests.unit.trainer.look_database import make_look_database
from trainer.evaluate.evaluations.schemas import read_request
from trainer.evaluate.evaluations.spec import EvaluationJob
from trainer.runs import control, protocol

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _patient_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel waits for the worker for longer than it does for a client: on a busy machine one may need more than those
    seconds to start, and tests hold the answer to the state that was asked for."""
    monkeypatch.setattr("trainer.runs.service.SETTLE_S", 120.0)


@pytest.fixture
def gateway() -> Iterator[EvaluationGateway]:
    with listening(EvaluationGateway(say=tuned_is_right)) as fake:
        yield fake


@pytest.fixture(autouse=True)
def _no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.signal, "signal", lambda *_: None)


@pytest.fixture
def make_folder(gateway: EvaluationGateway, tmp_path: Path) -> MakeFolder:
    """Writes an evaluation's folder from the client's body, the gateway's context and fields of the job."""

    def make(
        body: dict[str, Any] | None = None, content: bytes | None = None, context: Any = None, **more: Any
    ) -> Path:
        request = {"held_out": "held"} | ({"model": "voice@3", "suites": []} if body is None else body)
        held_out = gateway.add("held", jsonl(rows()) if content is None else content)
        values = {"held_out": held_out, "candidate": "voice@3", "records": True} | (context or {})
        job = EvaluationJob(
            **{
                "id": "eval-1",
                "project": "default",
                "created_at": 0,
                "gateway": gateway.url,
                "base_name": BASE,
                "context_tokens": 2048,
                "body": read_request(request),
                "context": EvaluationContext(**values),
                "min_examples": 30,
                "smallest_difference": 0.02,
                "forget_accuracy": 0.05,
                "forget_items": 40,
                "forget_perplexity": 0.25,
                "most_examples": 300,
                "concurrency": 4,
                "repeats": 2,
                **more,
            }
        )
        folder = tmp_path / "evaluations" / job.id
        folder.mkdir(parents=True)
        make_look_database(tmp_path)
        (folder / protocol.SPEC).write_text(job.model_dump_json(by_alias=True))
        (folder / protocol.KEY).write_text(KEY)
        return folder

    return make
