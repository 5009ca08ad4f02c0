"""What trainers and workers of earlier releases ask for while the release's files are replaced under them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluate.evaluations.spec import EvaluationResult
from trainer.finetune.spec import JobResult
from trainer.runs.protocol import RESULT
from trainer.tune import progress


@pytest.mark.parametrize("name", ["judging", "primary"])
def test_a_worker_that_comes_to_what_has_moved_starts_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def execv(program: str, arguments: list[str]) -> None:
        started.append((program, arguments))
        raise SystemExit

    command = [sys.executable, "-m", "trainer.jobs.worker", "/jobs/ftjob-1", "--stage", "train"]
    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(ImportError, match="moved"):
        importlib.import_module(f"trainer.jobs.{name}")
    monkeypatch.setattr(sys, "orig_argv", command)
    with pytest.raises(SystemExit):
        importlib.import_module(f"trainer.jobs.{name}")
    assert started == [(sys.executable, command)]


def test_a_worker_that_begins_to_train_among_new_files_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "trainer.jobs.worker", "/jobs/ftjob-1", "--stage", "train"]
    monkeypatch.setattr(sys, "orig_argv", command)
    monkeypatch.setattr(os, "execv", lambda *_: sys.exit("started anew"))
    monkeypatch.delattr(progress, "no_op")  # the module as it is in memory has another name for it
    monkeypatch.delitem(sys.modules, "trainer.tune.train", raising=False)
    with pytest.raises(SystemExit, match="started anew"):
        importlib.import_module("trainer.tune.train")


@pytest.mark.parametrize("module", ["trainer.jobs.worker", "trainer.evaluations.worker"])
def test_a_worker_is_started_by_its_earlier_name(make_job: Any, module: str) -> None:
    folder: Path = make_job()
    evaluates = module == "trainer.evaluations.worker"
    result = EvaluationResult(status="cancelled") if evaluates else JobResult(status="cancelled")
    (folder / RESULT).write_text(result.model_dump_json())
    stage = [] if evaluates else ["--stage", "train"]
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder), *stage], capture_output=True, text=True, timeout=300, check=False
    )
    # an evaluation's worker is at the wrong kind of directory here, and is the one to say so
    assert done.returncode == 0 if not evaluates else "EvaluationJob" in done.stderr
