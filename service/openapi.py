"""The OpenAPI document of the whole gateway: FastAPI's own of the control plane, completed by what routes declare
(`service.http.schema`), what the trainer answers (`service.training.openapi`), and the data path's, made from the
tables of fields that check its requests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from service.error_handlers import PUBLIC
from service.http.schema import BODY, ErrorResponse
from service.inference.dialect import Route
from service.inference.openapi import inference_paths
from service.training.openapi import FORWARDED

DESCRIPTION: Final = (
    "One base model, many adapters, OpenAI's API. `model` names the base, an adapter (`brand-voice`, its live "
    "version), a version (`brand-voice@3`) or an alias (`brand-voice:canary`). "
    "What a schema cannot say is in `service/API.md`."
)
REF: Final = "#/components/schemas/{model}"
TAGS: Final = (
    *(
        "inference",
        "batches",
        "adapters",
        "files",
        "datasets",
        "fine-tuning",
        "training",
        "evaluations",
        "ladders",
        "reviews",
    ),
    "teachers",
    *("revalidation", "vector stores", "access", "usage", "costs", "telemetry", "health"),
)
"""In the order in which the page shows them."""
KEYLESS: Final = frozenset({"/metrics"})
"""Paths where a setting says whether a key is needed."""
REFUSED: Final = {
    "401": "`invalid_api_key`: no key, or one that is unknown, revoked or expired.",
    "403": "`insufficient_scope`, `project_mismatch`, or a name that the key may not use.",
}


def build(app: FastAPI, inference: Mapping[str, Route], version: str) -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    described = (*app.routes, *FORWARDED)
    routes = [route for route in described if isinstance(route, APIRoute) and route.include_in_schema]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # routes that are forwarded share a function, and so their operation's id
        document = get_openapi(title="Hatrack", version=version, description=DESCRIPTION, routes=routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    _add_model(schemas, ErrorResponse)
    for route in routes:
        for method in sorted(route.methods):
            _complete(document["paths"][route.path_format][method.lower()], route, method, schemas)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["paths"] |= inference_paths(inference, schemas)
    document["tags"] = [{"name": name} for name in TAGS]
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _complete(operation: dict[str, Any], route: APIRoute, method: str, schemas: dict[str, Any]) -> None:
    """Add what FastAPI cannot know: the body, the key, and the errors of our shape."""
    operation["operationId"] = f"{method.lower()}_{route.path_format}".translate(str.maketrans("/{}-.", "_____"))
    answers: dict[str, Any] = operation["responses"]
    for answer in answers.values():
        for content in answer.get("content", {}).values():
            if "$ref" in content["schema"]:  # FastAPI puts what it makes of the return annotation beside it
                content["schema"] = {"$ref": content["schema"]["$ref"]}
    answers.pop("422", None) if "422" not in {str(status) for status in route.responses} else None
    if body := getattr(route.endpoint, BODY, None):
        models, required = body
        content = {kind: {"schema": {"$ref": _add_model(schemas, model)}} for kind, model in models.items()}
        operation["requestBody"] = {"required": required, "content": content}
        answers.setdefault("413", _error("The body is too large."))
    if route.path_format not in PUBLIC:
        # the headers that say who calls, and for which project, may be at fault whatever the route
        answers.setdefault("400", _error("`invalid_value`, or another code that says what is wrong with a field."))
        for status, description in REFUSED.items():
            answers.setdefault(status, _error(description))
        operation["security"] = [{}, {"key": []}] if route.path_format in KEYLESS else [{"key": []}]
    answers.setdefault("500", _error("The gateway failed; its log has the reason under the answer's `x-request-id`."))


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=ErrorResponse.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _add_model(schemas: dict[str, Any], model: type[BaseModel]) -> str:
    """Put a model and those that it uses among the document's schemas; the reference to it."""
    schema = model.model_json_schema(ref_template=REF, mode="validation")
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    schemas.setdefault(model.__name__, schema)
    return REF.format(model=model.__name__)
