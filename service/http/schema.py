"""How routes describe themselves: what they take, what they answer, which errors they give.

    @router.post("/keys", status_code=201, responses=answers(CreatedKey, BadRequest, status=201))
    @takes(KeyRequest)
    async def create_key(...)

Bodies are read after the caller was authorised, and answers are written as they are, so FastAPI knows of neither:
`service.openapi` reads what is declared here. The models are not run when an answer is written; tests hold every
answer of the gateway against them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.errors import HatrackError

BODY: Final = "__hatrack_body__"
Item = TypeVar("Item")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class ApiModel(BaseModel):
    """A JSON object of an answer."""

    model_config = ConfigDict(extra="forbid")


class Error(ApiModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = Field(description="The field of the request that is at fault, dotted; null where none is.")
    code: str | None


class ErrorResponse(ApiModel):
    """Every error of every route, but Anthropic's."""

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
        model: Of the JSON that it answers; None: the answer is empty, or of ``media_type``.
        errors: What it raises itself, beside what every route with a key may answer (400, 401, 403, 500).
        status: Of the answer.
        description: Of the answer.
        media_type: Of an answer that is not JSON.
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
    model: type[BaseModel], *, required: bool = True, media_type: str = "application/json"
) -> Callable[[Endpoint], Endpoint]:
    """A decorator: the endpoint reads a body of this model."""

    def note(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, BODY, (model, required, media_type))
        return endpoint

    return note
