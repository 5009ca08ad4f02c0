"""Evaluations as the API shows them."""

from __future__ import annotations

from typing import Any, Final

from adapters.protocol.reports import EvaluationProgress, Waiting
from trainer.evaluate.evaluations.spec import EvaluationDetails, EvaluationResult
from trainer.runs.state import Run, Status

WAITING: Final = EvaluationProgress(stage="queued", done=0, total=0)
STARTING: Final = EvaluationProgress(stage="starting", done=0, total=0)


def evaluation_object(run: Run, progress: EvaluationProgress | None, waiting: Waiting | None) -> dict[str, Any]:
    """An `evaluation` object.

    Args:
        progress: The worker's last report; None if there is none.
        waiting: What it waits for; None if it waits for nothing.
    """
    result = None if run.result is None else EvaluationResult.model_validate(run.result)
    body, arms = run.body, EvaluationDetails.model_validate(run.details).arms
    visible_progress = progress or (STARTING if run.status is Status.RUNNING else WAITING)
    return {
        "object": "evaluation",
        "id": run.id,
        "status": run.shown_status,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "kind": body.get("kind", "evaluation"),
        "model": body.get("model"),
        "arms": list(arms),
        "candidate": next((arm["model"] for arm in arms if arm["role"] == "candidate"), None),
        "held_out": body["held_out"],
        "metric": result.metric if result is not None and result.metric else body.get("metric", "auto"),
        "promote": body.get("promote", "never"),
        "verdict": result.verdict if result is not None else None,
        "sentence": result.sentence if result is not None else None,
        "examples": result.examples if result is not None else None,
        "live": result.live if result is not None else None,
        "note": result.note if result is not None else None,
        "progress": None if run.over else visible_progress.model_dump(),
        "waiting": waiting.model_dump(mode="json") if waiting is not None else None,
        "result_files": list(result.files) if result is not None else [],
        "seconds": result.seconds if result is not None else None,
        "error": result.error.model_dump() if result is not None and result.error is not None else None,
        "metadata": body.get("metadata"),
    }
