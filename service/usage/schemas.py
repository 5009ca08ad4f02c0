"""Usage as the API shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.http.schema import ApiModel


class UsageRow(ApiModel):
    """Requests and tokens of one group; what it is not grouped by is left out."""

    object: Literal["usage"]
    id: str
    start: int
    end: int
    project: str = ""
    key: str = Field("", description="The key's id.")
    key_name: str | None = None
    adapter: str | None = Field(None, description="The base's name where the base answered; null where nothing did.")
    version: int | None = None
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsagePage(ApiModel):
    """A page of usage, over whole buckets of time."""

    object: Literal["list"]
    start: int
    end: int
    data: list[UsageRow]
    has_more: bool
