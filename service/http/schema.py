"""OpenAPI descriptions of routes: their bodies, answers and errors.

    @router.post("/keys", status_code=201, responses=answers(CreatedKey, BadRequest, status=201))
    @takes(KeyRequest)
    async def create_key(...)

Bodies are read after the caller was authorised, and answers are written as they are, so FastAPI knows neither;
`service.openapi` reads the declarations made here. Answers are not validated at run time; the tests validate every
answer of the gateway against its model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeVar

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from service.errors import HatrackError

BODY: Final = "__hatrack_body__"
Item = TypeVar("Item")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class ApiModel(BaseModel):
    """A JSON object in an answer."""

    model_config = ConfigDict(extra="forbid")


class Error(ApiModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = Field(description="The dotted name of the invalid field of the request; null if there is none.")
    code: str | None


class ErrorResponse(ApiModel):
    """The error of every route except Anthropic's."""

    error: Error


class Page(ApiModel, Generic[Item]):
    """A page of a list, in OpenAI's form; the next one begins `after` its last id."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def answers(
    model: Any, *errors: type[HatrackError], status: int = 200, description: str = "", media_type: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route.

    Args:
        model: The answer's JSON; None: the answer is empty, or of ``media_type``.
        errors: What it raises, in addition to what every authenticated route may answer (400, 401, 403, 500).
        status: The answer's status.
        description: The answer's description.
        media_type: The media type of an answer that is not JSON.
    """
    answer: dict[str, Any] = {"description": description or (model.__doc__ or "").split("\n")[0] or "Done."}
    if model is not None:
        answer["model"] = model
    elif media_type is not None:
        answer["content"] = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    responses: dict[int | str, dict[str, Any]] = {status: answer}
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for error in errors:
        by_status[error.status].append(f"`{error.default_code}`" if error.default_code else error.__name__)
    for code, names in by_status.items():
        responses[code] = {"model": ErrorResponse, "description": ", ".join(dict.fromkeys(names))}
    return responses


def takes(
    model: type[BaseModel],
    *,
    required: bool = True,
    media_type: str = "application/json",
    or_json: type[BaseModel] | None = None,
) -> Callable[[Endpoint], Endpoint]:
    """Decorator that declares the model of an endpoint's body; ``or_json``: of one that may be sent as JSON instead."""
    models = {media_type: model} | ({} if or_json is None else {"application/json": or_json})

    def note(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, BODY, (models, required))
        return endpoint

    return note


def add_routes(api: FastAPI, *routers: APIRouter) -> None:
    """Add routers' routes to an application, as they are.

    `FastAPI.include_router` builds every route a second time, for a prefix or dependencies that none of ours is given:
    seconds of each start.
    """
    for router in routers:
        api.router.routes.extend(router.routes)
