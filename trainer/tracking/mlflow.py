"""MLflow's tracking server, by its REST API (mlflow.org/docs/latest/api_reference/rest-api.html).

Not by its client: `mlflow-skinny` requires 21 packages, the SDK of a cloud and a web server among them, for the six
calls below.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import httpx

from trainer.errors import TrackerFailed
from trainer.tracking.tracker import Point, TrackedJob

API: Final = "/api/2.0/mlflow"
TIMEOUT: Final = httpx.Timeout(30, connect=5)
METRICS_A_CALL: Final = 1000
"""The server's limits for one `log-batch`, like the two below."""
PARAMS_A_CALL: Final = 100
MAX_VALUE_CHARS: Final = 5000
JOB_TAG: Final = "hatrack.job"
MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
EXISTS: Final = "RESOURCE_ALREADY_EXISTS"
STATUSES: Final = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowTracker:
    """One tracking server.

    Args:
        token: Sent as a bearer token; with a colon it is `user:password` of MLflow's basic authentication.
    """

    name: ClassVar[str] = "mlflow"
    title: ClassVar[str] = "MLflow"

    def __init__(self, url: str, token: str | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {} if token is None else {"authorization": _authorization(token)}
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + API,
            headers=headers,
            timeout=TIMEOUT,
            follow_redirects=False,
            transport=transport,
        )

    async def open(self, job: TrackedJob) -> str:
        """See Tracker. A run is found by its tag `hatrack.job`: an earlier attempt may have created it."""
        experiment = await self._experiment(job.place)
        body = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{JOB_TAG}` = '{job.id}'",
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 1,
        }
        runs = (await self._post("/runs/search", body)).get("runs") or []
        if runs:
            run_id = str(runs[0]["info"]["run_id"])
        else:
            run = {
                "experiment_id": experiment,
                "run_name": job.name,
                "start_time": job.created_at * 1000,
                "tags": _pairs({**(job.options.get("tags") or {}), **_prefixed(job.tags), JOB_TAG: job.id}),
            }
            run_id = str((await self._post("/runs/create", run))["run"]["info"]["run_id"])
        params = _pairs(job.params)
        for start in range(0, len(params), PARAMS_A_CALL):
            await self._post("/runs/log-batch", {"run_id": run_id, "params": params[start : start + PARAMS_A_CALL]})
        return run_id

    async def log(self, job: TrackedJob, run_id: str, points: Sequence[Point]) -> None:
        """See Tracker. The server stores a metric of the same step, time and value once."""
        metrics = [
            {"key": key, "value": value, "timestamp": round(point.at * 1000), "step": point.step}
            for point in points
            for key, value in point.values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), METRICS_A_CALL):
            await self._post("/runs/log-batch", {"run_id": run_id, "metrics": metrics[start : start + METRICS_A_CALL]})

    async def finish(self, job: TrackedJob, run_id: str) -> None:
        """See Tracker. Results become tags, and the numbers among them metrics as well."""
        at = (job.finished_at or job.created_at) * 1000
        numbers = [
            {"key": key, "value": value, "timestamp": at, "step": 0}
            for key, value in job.results.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        tags = _pairs(_prefixed(job.results))
        await self._post("/runs/log-batch", {"run_id": run_id, "metrics": numbers, "tags": tags})
        ended = {"run_id": run_id, "status": STATUSES.get(job.status, "FINISHED"), "end_time": at}
        await self._post("/runs/update", ended)

    async def close(self) -> None:
        """See Tracker."""
        await self._http.aclose()

    async def _experiment(self, name: str) -> str:
        """The experiment's id; it is created if there is none of this name."""
        found = await self._call("GET", "/experiments/get-by-name", MISSING, params={"experiment_name": name})
        if found is None:
            created = await self._call("POST", "/experiments/create", EXISTS, json={"name": name})
            if created is not None:
                return str(created["experiment_id"])
            found = await self._call("GET", "/experiments/get-by-name", params={"experiment_name": name})
        return str((found or {})["experiment"]["experiment_id"])

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._call("POST", path, json=body) or {}

    async def _call(self, method: str, path: str, expected: str = "", **content: Any) -> dict[str, Any] | None:
        """The answer; None for the error code ``expected``. Raises TrackerFailed."""
        try:
            response = await self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise TrackerFailed(f"no answer ({type(error).__name__})") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        code = answer.get("error_code") if isinstance(answer, dict) else None
        if expected and code == expected:
            return None
        raise TrackerFailed(f"status {response.status_code}{f', {code}' if isinstance(code, str) else ''}")


def _authorization(token: str) -> str:
    if ":" in token:
        return "Basic " + base64.b64encode(token.encode()).decode()
    return f"Bearer {token}"


def _prefixed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"hatrack.{key}": value for key, value in values.items()}


def _pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": str(key), "value": str(value)[:MAX_VALUE_CHARS]} for key, value in values.items()]
