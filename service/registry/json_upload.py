"""The body of an upload as JSON: a version without weights, or one whose files the gateway fetches from a source."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from adapters.sources import MAX_SOURCE_LENGTH
from service.errors import BadRequest, TooLarge
from service.http.body import as_model, parse
from service.http.multipart import feed_body
from service.registry.upload import BOUNDS, ReceivedUpload, future, parse_settings, require_settings

SOURCE_BYTES: Final = 4096
_SHA256: Final = r"^[0-9a-f]{64}$"


class SourceBody(BaseModel):
    """Where the gateway fetches the files of an adapter."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE_LENGTH)] = Field(
        description="The folder of adapter_config.json and adapter_model.safetensors: `hf://ORG/REPO@REVISION/FOLDER`, "
        "`s3://BUCKET/FOLDER` or `https://HOST/FOLDER`. HATRACK_SOURCES of the gateway must cover it."
    )
    sha256: Annotated[str, StringConstraints(pattern=_SHA256)] | None = Field(
        None,
        description="What the SHA-256 of the weights must be, in hex. A hub states its own, which is always checked; "
        "of a bucket or a web server only this one is.",
    )


class _JsonBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    source: SourceBody | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    alias: str | None = None
    expires_at: int | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class JsonUpload:
    """What was sent; with a ``source``, ``received`` lacks the files that are to be fetched from it."""

    received: ReceivedUpload
    source: SourceBody | None


async def receive_json(
    headers: Mapping[str, str], body: AsyncIterator[bytes], check_name: Callable[[str], object]
) -> JsonUpload:
    """Read the whole body.

    Raises:
        TooLarge: It, or a part of it, is over its bound.
        BadRequest: It is not well formed, or a field (`param`) is missing, unknown or not what it should be.
        Forbidden: As ``check_name``.
    """
    content = bytearray()
    parts = [part for part in _JsonBody.model_fields if part in BOUNDS]
    await feed_body(headers, body, content.extend, max_bytes=SOURCE_BYTES + sum(BOUNDS[part] for part in parts))
    value = parse(content)
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if "settings" not in value and value.get("source") is None and "name" in value:
        raise BadRequest("`settings` is missing", param="settings", code="missing_required_parameter")
    given = as_model(value, _JsonBody)
    for part in ("metadata", "settings"):
        if len(orjson.dumps(value.get(part))) > BOUNDS[part]:
            raise TooLarge(f"`{part}` must have at most {BOUNDS[part]} bytes", param=part)
    check_name(given.name)
    settings = parse_settings(given.settings)
    if given.source is None:
        require_settings(settings, "settings")
    received = ReceivedUpload(
        name=given.name,
        config=b"",
        readme=None,
        metadata=given.metadata,
        settings=settings,
        alias=given.alias,
        has_weights=given.source is not None,
        expires_at=future(given.expires_at),
        base=given.base,
    )
    return JsonUpload(received, given.source)
