"""MLflow's tracking server in memory, as far as its REST API is used: its shapes, its error codes, its rules.

The tests also pass against a real one: `HATRACK_TEST_MLFLOW_URL=http://127.0.0.1:5000`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

API = "/api/2.0/mlflow"


@dataclass
class MlflowServer:
    """Experiments and runs; ``statuses`` are those of the next answers, where they are not 200."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    down: bool = False
    authorization: str | None = None

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        if self.statuses:
            return httpx.Response(self.statuses.pop(0), json={"error_code": "TEMPORARILY_UNAVAILABLE", "message": ""})
        self.authorization = request.headers.get("authorization")
        body = json.loads(request.content) if request.content else dict(request.url.params)
        assert request.url.path.startswith(API)
        call = request.url.path.removeprefix(API + "/")
        return getattr(self, f"_{call.replace('/', '_').replace('-', '_')}")(body)  # type: ignore[no-any-return]

    def _experiments_get_by_name(self, body: dict[str, Any]) -> httpx.Response:
        name = body["experiment_name"]
        if name not in self.experiments:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})
        return httpx.Response(200, json={"experiment": {"experiment_id": self.experiments[name], "name": name}})

    def _experiments_create(self, body: dict[str, Any]) -> httpx.Response:
        self.experiments[body["name"]] = str(len(self.experiments) + 1)
        return httpx.Response(200, json={"experiment_id": self.experiments[body["name"]]})

    def _runs_search(self, body: dict[str, Any]) -> httpx.Response:
        key, _, value = body["filter"].removeprefix("tags.`").partition("` = ")
        found = [
            {"info": {"run_id": run_id}}
            for run_id, run in self.runs.items()
            if run["tags"].get(key) == value.strip("'") and run["experiment_id"] in body["experiment_ids"]
        ]
        return httpx.Response(200, json={"runs": found} if found else {})

    def _runs_create(self, body: dict[str, Any]) -> httpx.Response:
        run_id = f"run-{len(self.runs) + 1}"
        tags = {tag["key"]: tag["value"] for tag in body["tags"]}
        base = {"name": body["run_name"], "experiment_id": body["experiment_id"], "start_time": body["start_time"]}
        self.runs[run_id] = base | {"tags": tags, "params": {}, "metrics": {}, "status": "RUNNING"}
        return httpx.Response(200, json={"run": {"info": {"run_id": run_id}}})

    def _runs_log_batch(self, body: dict[str, Any]) -> httpx.Response:
        run = self.runs[body["run_id"]]
        metrics, params, tags = (body.get(name) or [] for name in ("metrics", "params", "tags"))
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for pair in params:
            assert run["params"].setdefault(pair["key"], pair["value"]) == pair["value"]
        run["tags"] |= {pair["key"]: pair["value"] for pair in tags}
        for metric in metrics:
            # the server's primary key: the same point again is stored once
            point = (metric["step"], metric["timestamp"], metric["value"])
            run["metrics"].setdefault(metric["key"], {})[point] = None
        return httpx.Response(200, json={})

    def _runs_update(self, body: dict[str, Any]) -> httpx.Response:
        self.runs[body["run_id"]] |= {"status": body["status"], "end_time": body["end_time"]}
        return httpx.Response(200, json={"run_info": {}})

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """A metric's values by step."""
        return sorted((step, value) for step, _, value in self.runs[run_id]["metrics"][metric])
