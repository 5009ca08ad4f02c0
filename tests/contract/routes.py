"""The routes of the public contract: methods, paths, parameters, bodies, and who may call them."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from typing import Any, Final

import httpx
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp

from service.access.caller import Scope
from tests.contract.derived import Document, type_of

BODY: Final = re.compile(r"read_json\(request, (\w+)|as_model\(.*\), (\w+)\)|validated\((\w+),")
"""How a route reads a body of ours: the model's name."""
PARAMETERS: Final = {"name": "voice", "number": "1", "alias": "live", "rest": "x"}


def fastapi_of(app: ASGIApp) -> FastAPI:
    """The FastAPI app inside the gateway's own layers."""
    inner: Any = app
    while not isinstance(inner, FastAPI):
        inner = getattr(inner, "_rest", None) or inner.app
    return inner


def routes(app: FastAPI) -> Document:
    """Each route with the scopes that a key needs, its query and headers, and its body."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # routes that are forwarded share a function, and so their operation's id
        schema = get_openapi(title="", version="", routes=app.routes)
    found: Document = {}
    for name, said in _described(app, schema):
        found.setdefault(name, said)  # of two that match, the first one answers
    return dict(sorted(found.items()))


def _described(app: FastAPI, schema: dict[str, Any]) -> Iterator[tuple[str, Document]]:
    definitions = schema.get("components", {}).get("schemas", {})
    for route in _api_routes(app):
        for method in sorted(route.methods):
            # what is forwarded is not in the document under its own path
            operation = schema["paths"].get(route.path_format, {}).get(method.lower(), {})
            said: Document = {"scopes": ", ".join(dict.fromkeys(_scopes(route.dependant)))}
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "path":
                    required = "required " if parameter.get("required") else ""
                    said[f"{parameter['in']} {parameter['name']}"] = required + type_of(
                        parameter["schema"], definitions
                    )
            for names in BODY.findall(inspect.getsource(route.endpoint)):
                said["body"] = type_of(_model(route, "".join(names)).model_json_schema())
            yield f"{method} {route.path}", said


def _api_routes(app: FastAPI) -> list[APIRoute]:
    # the names of the console's files are nobody's interface
    return [route for route in app.routes if isinstance(route, APIRoute) and not route.path.startswith("/console/")]


def _model(route: APIRoute, name: str) -> type[BaseModel]:
    model: type[BaseModel] = inspect.getmodule(route.endpoint).__dict__[name]
    return model


def _scopes(dependant: Dependant) -> list[str]:
    """Those that `needs(...)` closed over."""
    found = []
    for dependency in dependant.dependencies:
        closed = inspect.getclosurevars(dependency.call).nonlocals if inspect.isfunction(dependency.call) else {}
        found += [str(scope.value) for scope in closed.get("scopes", ()) if isinstance(scope, Scope)]
        found += _scopes(dependency)
    return found


async def refusals(app: FastAPI, inference_paths: list[str], http: httpx.AsyncClient) -> Document:
    """What each route answers to a request without a key."""
    paths = [(method, route.path) for route in _api_routes(app) for method in sorted(route.methods)]
    paths += [("POST", path) for path in inference_paths]
    found = {}
    for method, path in sorted(paths):
        concrete = re.sub(r"\{(\w+)(:path)?\}", lambda match: PARAMETERS.get(match[1], "x"), path)
        answer = await http.request(method, concrete)
        found[f"{method} {path}"] = f"{answer.status_code} {_code(answer)}".strip()
    return found


def _code(answer: httpx.Response) -> str:
    if answer.is_success or "json" not in answer.headers.get("content-type", ""):
        return ""
    return str(answer.json().get("error", {}).get("code", ""))
