"""Checks the gateway's answers against its own OpenAPI document: status, content type, and shape to the last field."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema import Draft202012Validator

PARAMETER = re.compile(r"\\\{[^}]+\\\}")


class Conformance:
    """Checks answers.

    Args:
        document: What `GET /openapi.json` gives.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        paths: list[str] = sorted(document["paths"], key=lambda path: path.count("{"))
        self._paths = [(re.compile(PARAMETER.sub("[^/]+", re.escape(path))), path) for path in paths]

    def complaint(self, method: str, path: str, status: int, content_type: str, body: bytes) -> str | None:
        """What is wrong with an answer; None: nothing, or its route is not documented at all."""
        operation = self._operation(method, path)
        if operation is None:
            return None
        answer = operation["responses"].get(str(status))
        if answer is None:
            return f"{method} {path}: {status} is not documented: {body[:300]!r}"
        contents = answer.get("content", {})
        kind = content_type.partition(";")[0]
        if not contents or not body:
            return None if not body else f"{method} {path}: {status} is documented without content: {body[:300]!r}"
        if kind not in contents:
            return f"{method} {path}: {status} answers {kind!r}, documented are {sorted(contents)}"
        if kind != "application/json":
            return None
        schema = {**contents[kind]["schema"], "components": self._document["components"]}
        faults = Draft202012Validator(schema).iter_errors(json.loads(body))
        faults_text = "; ".join(f"{'.'.join(map(str, fault.absolute_path))}: {fault.message[:200]}" for fault in faults)
        return f"{method} {path}: {status}: {faults_text}" if faults_text else None

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, template in self._paths:
            if pattern.fullmatch(path) and method.lower() in self._document["paths"][template]:
                operation: dict[str, Any] = self._document["paths"][template][method.lower()]
                return operation
        return None
