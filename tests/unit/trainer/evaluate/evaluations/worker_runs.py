"""An evaluation's worker, run in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainer.config import Settings
from trainer.evaluate.evaluations import spec
from trainer.evaluate.evaluations.pipeline import EvaluationPipeline
from trainer.evaluate.evaluations.planning import EvaluationPlan
from trainer.evaluate.evaluations.spec import EvaluationResult
from trainer.evaluate.evaluations.worker import KIND
from trainer.evaluate.spec import EvaluationSpec
from trainer.runs import protocol, worker
from trainer.runs.directory import RunDirectory
from trainer.runs.protocol import DONE


def work(held: RunDirectory, settings: Settings) -> int:
    """As the worker's process does it, with these settings."""
    kind = replace(KIND, pipeline=lambda *given: EvaluationPipeline(*given, settings))
    return worker.work(kind, held, spec.EVALUATE)


def run(folder: Path) -> EvaluationResult:
    with RunDirectory(folder) as held:
        assert work(held, Settings()) == DONE
    return EvaluationResult.model_validate_json((folder / protocol.RESULT).read_bytes())


def plan_of(folder: Path) -> EvaluationSpec:
    return EvaluationPlan.model_validate_json((folder / spec.PLAN).read_bytes()).evaluation
