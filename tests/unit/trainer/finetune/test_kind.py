"""What a fine-tuning job leaves in its directory: what of it is progress, and what of it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finetune.conftest import FakeGateway
from tests.unit.trainer.finetune.trainers import installation
from trainer.app import Trainer
from trainer.config import Settings
from trainer.evaluate.evaluations.spec import ANSWER_FILES
from trainer.finetune import spec
from trainer.finetune.capacity import BaseModelInfo
from trainer.finetune.kind import FinetuneKind
from trainer.runs import protocol

JOB = "ftjob-1"


@pytest.fixture
def finetune(make_job: Any, tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> FinetuneKind:
    folder: Path = make_job()
    place = installation(tmp_path / "home", base_dir, gateway)
    place.directory.mkdir(parents=True)
    folder.parent.rename(place.directory / "jobs")
    found = Trainer.build(Settings(device="cpu"), place, BaseModelInfo.read(base_dir)).kinds[0]
    assert isinstance(found, FinetuneKind)
    return found


def test_what_grows_is_cleared_and_what_a_job_is_remembered_by_stays(finetune: FinetuneKind) -> None:
    folder = finetune.directories.path_of(JOB)
    (folder / spec.CHECKPOINTS).mkdir()
    big = (
        "training.jsonl", "held_out.jsonl", "held_out_questions.jsonl", "answers.jsonl", "scores.jsonl",
        "suite_answers.jsonl", "judgements.jsonl", "worker.log", "worker.log.1",
    )  # fmt: skip
    kept = {
        "spec.json",
        "events.jsonl",
        "report.json",
        "plan.json",
        "evaluation.json",
        "evaluation.html",
        "result.json",
    }
    for name in (*big, *kept):
        (folder / name).touch()
    finetune.directories.clear(JOB)
    assert kept <= {path.name for path in folder.iterdir()} <= kept | {protocol.KEY}
    finetune.directories.clear(JOB)


def test_progress_is_what_a_crash_does_not_undo(finetune: FinetuneKind) -> None:
    seen = {finetune.progress(JOB)}
    for name in (spec.TRAINING, spec.PLAN):
        (finetune.directories.path_of(JOB) / name).write_text("{}")
        seen.add(finetune.progress(JOB))
    for step in ("step-00000002", "step-00000010"):
        (finetune.directories.path_of(JOB) / spec.CHECKPOINTS / step).mkdir(parents=True)
        seen.add(finetune.progress(JOB))
    assert len(seen) == 5
    assert finetune.progress(JOB).endswith(" step-00000010")
    (finetune.directories.path_of(JOB) / protocol.EVENTS).write_text("more")
    assert finetune.progress(JOB) in seen


@pytest.mark.parametrize("book", ANSWER_FILES)
def test_whatever_is_written_while_it_is_judged_is_progress(finetune: FinetuneKind, book: str) -> None:
    (finetune.directories.path_of(JOB) / spec.PUSHED).write_text("{}")
    before = finetune.progress(JOB)
    (finetune.directories.path_of(JOB) / book).write_text("more")
    assert finetune.progress(JOB) != before
