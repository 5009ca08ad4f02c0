"""Schemathesis over the gateway's own OpenAPI document: requests that it allows, with a key and without; no answer is a
5xx, and none is undocumented (`GatewayApp` holds each to the document)."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core import NotSet

from tests.unit.service.gateway_app import GatewayApp
from tests.unit.service.test_fuzz_routes import gateway_in

EXAMPLES = 3
MANY_EXAMPLES = 60
SKIPPED = {"delete /v1/keys/current", "post /v1/keys/rotate-admin"}
"""They would take the key that the rest is asked with."""


def request_of(case: Any) -> dict[str, Any]:
    """A case as httpx takes it."""
    request: dict[str, Any] = {"method": case.method, "url": case.formatted_path, "params": case.query or {}}
    request["headers"] = {str(name): str(value) for name, value in (case.headers or {}).items()}
    if not isinstance(case.body, NotSet):
        if case.media_type == "multipart/form-data":
            request["files"] = {name: (None, str(value).encode()) for name, value in dict(case.body).items()}
        else:
            request["json"] = case.body
    return request


def ask_everything(home: Any, examples: int) -> None:
    with gateway_in(home) as (runner, gateway):
        document = runner.run(gateway.http.get("/openapi.json")).json()
        schema = schemathesis.openapi.from_dict(document)
        asked = 0
        for result in schema.get_all_operations():
            operation = result.ok()
            if f"{operation.method} {operation.path}" not in SKIPPED:
                ask(operation, examples, runner, gateway)
                asked += 1
        assert asked > 60


def ask(operation: Any, examples: int, runner: Any, gateway: GatewayApp) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(operation.as_strategy())
    def one(case: Any) -> None:
        request = request_of(case)
        answer = runner.run(gateway.http.request(**request))
        # the stand-ins for engine and trainer give what real ones would: 503 is said where one of them is not there
        assert answer.status_code < 500 or answer.status_code == 503, answer.text[:500]
        request["headers"] = {**request["headers"], "authorization": ""}
        refused = runner.run(gateway.http.request(**request))
        needs_key = {} not in operation.definition.raw.get("security", [{}])
        assert refused.status_code in (401, 400) or not needs_key, refused.text[:300]

    one()


def test_every_operation_answers_as_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    ask_everything(tmp_path_factory.mktemp("g"), EXAMPLES)


@pytest.mark.slow
def test_every_operation_does_so_for_many_requests(tmp_path_factory: pytest.TempPathFactory) -> None:
    ask_everything(tmp_path_factory.mktemp("g"), MANY_EXAMPLES)
