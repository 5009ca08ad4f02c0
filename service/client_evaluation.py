"""The client's calls for evaluations; they need a key with the scopes `train` and `infer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import httpx

from service.client_caller import Caller
from service.client_traffic import adapter_path
from service.client_wire import ClientError, JsonObject, refusal

EVALUATIONS: Final = "/v1/evaluations"
MAKING: Final = httpx.Timeout(60, connect=5)
READING: Final = httpx.Timeout(60, connect=5)
CANCELLING: Final = httpx.Timeout(60, connect=5)


class EvaluationCalls(Caller):
    """What ``HatrackClient`` can do with evaluations; every method raises ClientError."""

    def create_evaluation(
        self,
        held_out: str,
        *,
        model: str | None = None,
        arms: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> JsonObject:
        """Judge a version against the base and what serves, or compare arms.

        Args:
            held_out: The id of an uploaded file.
            model: The version that is judged; or else
            arms: What is compared, each with `label` and `model`.
            options: `candidate`, `bases`, `metric`, `suites`, `promote`, `judge`, `max_tokens`, `repeats`, `metadata`.
        """
        body: JsonObject = {"model": model, "arms": arms, "held_out": held_out, **options}
        given = {key: value for key, value in body.items() if value is not None}
        return self._object("POST", EVALUATIONS, json=given, timeout=MAKING)

    def evaluations(self) -> Iterator[JsonObject]:
        """All evaluations, newest first."""
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = self._object("GET", EVALUATIONS, params=params)
            data = page.get("data", [])
            yield from data
            if not page.get("has_more") or not data or data[-1]["id"] == params.get("after"):
                return
            params["after"] = data[-1]["id"]

    def evaluation(self, evaluation_id: str) -> JsonObject:
        """One evaluation."""
        return self._object("GET", _evaluation(evaluation_id))

    def cancel_evaluation(self, evaluation_id: str) -> JsonObject:
        """End an evaluation; it is done within seconds."""
        return self._object("POST", f"{_evaluation(evaluation_id)}/cancel", timeout=CANCELLING)

    def evaluation_report(self, evaluation_id: str) -> JsonObject:
        """The report of an evaluation that has succeeded."""
        return self._object("GET", f"{_evaluation(evaluation_id)}/report", timeout=READING)

    def evaluation_page(self, evaluation_id: str) -> bytes:
        """The same as one HTML page."""
        return self._bytes(f"{_evaluation(evaluation_id)}/report.html")

    def file_content(self, file_id: str) -> bytes:
        """A file's bytes."""
        return self._bytes(f"/v1/files/{quote(file_id, safe='')}/content")

    def latest_verdict(self, name: str, version: int) -> JsonObject:
        """The latest verdict on a version. Raises ClientError also where it was never judged."""
        found = self._object("GET", adapter_path(name, "versions", version)).get("verdict")
        if not isinstance(found, dict):
            raise ClientError(404, "never_judged", f"{name}@{version} was never judged.")
        return found

    def _bytes(self, path: str) -> bytes:
        with self._translated():
            response = self._http.get(path, timeout=READING)
            if not response.is_success:
                raise refusal(response)
            return response.content


def _evaluation(evaluation_id: str) -> str:
    return f"{EVALUATIONS}/{quote(evaluation_id, safe='')}"
