"""Evaluations as the API shows them."""

from __future__ import annotations

from typing import Any, Final

from trainer.evaluations.spec import Progress
from trainer.evaluations.state import Evaluation, Status

WAITING: Final = Progress(stage="queued", done=0, total=0)
STARTING: Final = Progress(stage="starting", done=0, total=0)


def evaluation_object(evaluation: Evaluation, progress: Progress | None) -> dict[str, Any]:
    """An `evaluation`; ``progress`` is the worker's word, None where it has said none."""
    result, body = evaluation.result, evaluation.body
    shown = progress or (STARTING if evaluation.status is Status.RUNNING else WAITING)
    return {
        "object": "evaluation",
        "id": evaluation.id,
        "status": evaluation.status,
        "created_at": evaluation.created_at,
        "finished_at": evaluation.finished_at,
        "kind": body.get("kind", "evaluation"),
        "model": body.get("model"),
        "arms": evaluation.arms,
        "candidate": next((arm["model"] for arm in evaluation.arms if arm["role"] == "candidate"), None),
        "held_out": body["held_out"],
        "metric": result.metric if result is not None and result.metric else body.get("metric", "auto"),
        "promote": body.get("promote", "never"),
        "verdict": result.verdict if result is not None else None,
        "sentence": result.sentence if result is not None else None,
        "examples": result.examples if result is not None else None,
        "live": result.live if result is not None else None,
        "note": result.note if result is not None else None,
        "progress": None if evaluation.over else shown.model_dump(),
        "result_files": list(result.files) if result is not None else [],
        "seconds": result.seconds if result is not None else None,
        "error": result.error.model_dump() if result is not None and result.error is not None else None,
        "metadata": body.get("metadata"),
    }
