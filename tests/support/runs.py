"""Waiting for the trainer's jobs and evaluations: as long as they get on, however slow the machine is."""

from __future__ import annotations

import time
from typing import Any, Final

import httpx

INTERVAL_S: Final = 0.5
STALLED_S: Final = 1800.0
JOBS: Final = "/v1/fine_tuning/jobs"
EVALUATIONS: Final = "/v1/evaluations"


def wait_for_run(http: httpx.Client, run_id: str) -> dict[str, Any]:
    """The job or evaluation of this id, once it has ended. Fails where it has stood still for `STALLED_S`."""
    url = f"{JOBS if run_id.startswith('ftjob-') else EVALUATIONS}/{run_id}"
    progress, deadline = None, time.monotonic() + STALLED_S
    while (run := http.get(url).raise_for_status().json())["status"] not in ("succeeded", "failed", "cancelled"):
        before, progress = progress, _progress(http, url, run)
        if progress != before:
            deadline = time.monotonic() + STALLED_S
        assert time.monotonic() < deadline, f"{run_id} has stood still for {STALLED_S:g} s: {run}"
        time.sleep(INTERVAL_S)
    return dict(run)


def _progress(http: httpx.Client, url: str, run: dict[str, Any]) -> tuple[str, Any]:
    """What changes with each step that a run makes: a job's newest event, or how far an evaluation is."""
    if url.startswith(JOBS):
        return run["status"], http.get(f"{url}/events", params={"limit": 1}).raise_for_status().json()["data"]
    return run["status"], run["progress"]
