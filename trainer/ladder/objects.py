"""A ladder as a client sees it."""

from __future__ import annotations

from typing import Any

from adapters.protocol.reports import Waiting
from trainer.ladder.spec import LadderDetails
from trainer.runs.state import Run


def ladder_object(run: Run, waiting: Waiting | None, rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """The object of one ladder. ``rungs``: what is there by now, the cheapest first."""
    result = run.result or {}
    details = LadderDetails.model_validate(run.details)
    return {
        "object": "ladder",
        "id": run.id,
        "status": run.shown_status,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "adapter": details.adapter,
        "training_file": run.body["training_file"],
        "quick": bool(run.body.get("quick", False)),
        "target": run.body.get("target"),
        "children": [{"id": child, "purpose": purpose} for child, purpose in details.purposes.items()],
        "waiting": waiting.model_dump(mode="json") if waiting is not None else None,
        "rungs": rungs,
        "advice": result.get("advice"),
        "rung": result.get("rung"),
        "model": result.get("model"),
        "sentence": result.get("sentence"),
        "result_files": list(result.get("files") or ()),
        "seconds": result.get("seconds"),
        "error": result.get("error"),
        "metadata": run.body.get("metadata"),
    }
