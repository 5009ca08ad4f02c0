"""The provider `webhook`: the operator's own retriever, asked over HTTP.

    POST <HATRACK_GROUNDING_URL>
    x-hatrack-timestamp: 1767225600
    webhook-id: msg_2f1c…
    webhook-timestamp: 1767225600
    webhook-signature: v1,<base64 of HMAC-SHA256(secret, id + "." + timestamp + "." + body)>
    x-hatrack-signature: v1=<hex of HMAC-SHA256(secret, timestamp + "." + body)>    (for one more release)

    {"query", "messages", "adapter", "project", "vector_store_ids", "filters", "required_filters", "max_num_results",
     "score_threshold"}

    200 {"passages": [{"id", "text", "score", "source", "file_id"?, "vector_store_id"?, "attributes"?}, …]}

Signed by Standard Webhooks 1.0 (standardwebhooks.com), whose libraries take the secret as `whsec_` and its base64.
The address stands in the settings and nowhere else. It is resolved here, and where it leads to an address that the
settings do not allow, nothing is sent; a redirect is not followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from yarl import URL

from adapters.protocol.webhooks import signed_headers, signing_key
from service.errors import HatrackError, SettingsError
from service.grounding.config import MAX_RESULTS
from service.grounding.provider import Passage, Query
from service.http.addresses import AllowedResolver, Network, is_address, is_allowed
from service.http.connection_errors import ConnectionErrors

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_CONNECTIONS: Final = 64
MAX_TURNS: Final = 64
"""Messages of one example."""


class WebhookFailed(HatrackError):
    """The retriever gave no usable answer; the hook decides whether the request fails."""

    status, type, default_code = 502, "server_error", "grounding_webhook_failed"


def _unreachable(error: BaseException) -> WebhookFailed:
    return WebhookFailed(f"the retriever cannot be reached ({type(error).__name__})")


_ERRORS: Final = ConnectionErrors(unreachable=_unreachable, cut=_unreachable)


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature of a request: ``v1=`` and hex HMAC-SHA256 over the timestamp, a dot and the body."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _signing_key(secret: str) -> bytes:
    """The HMAC key for a secret. Raises SettingsError."""
    try:
        return signing_key(secret)
    except ValueError as error:
        raise SettingsError(f"HATRACK_GROUNDING_SECRET: {error}") from error


class _WebhookTurn(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["user", "assistant"]
    content: str


class _WebhookPassage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    text: str  # one that is too long costs itself alone: the hook leaves it out
    score: float
    source: Annotated[str, StringConstraints(max_length=512)]
    file_id: Annotated[str, StringConstraints(max_length=200)] | None = None
    vector_store_id: Annotated[str, StringConstraints(max_length=64)] | None = None
    attributes: Annotated[dict[str, str | bool | float], Field(max_length=16)] = Field(default_factory=dict)
    turns: Annotated[list[_WebhookTurn], Field(max_length=MAX_TURNS)] | None = None


class _WebhookResponse(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    passages: Annotated[list[_WebhookPassage], Field(max_length=4 * MAX_RESULTS)]


class Webhook:
    """The provider that asks the retriever at ``url``.

    Args:
        url: Where it is.
        secret: What both sign with.
        networks: Where it may be; none: anywhere but at link-local addresses and their like.

    Raises:
        SettingsError: The URL's host is an address that is not allowed.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        networks: Sequence[Network] = (),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = URL(url)
        self._secret, self._key = secret.encode(), _signing_key(secret)
        self._networks = tuple(networks)
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        host = self._url.host or ""
        # a name is looked at when it is resolved, an address is not resolved
        if is_address(host) and not is_allowed(host, self._networks):
            raise SettingsError(f"HATRACK_GROUNDING_URL: {host} is not in HATRACK_GROUNDING_NETWORKS")

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = AllowedResolver(
                lambda _host, address: is_allowed(address, self._networks), "outside HATRACK_GROUNDING_NETWORKS"
            )
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, resolver=resolver, use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    async def retrieve(self, query: Query, deadline: float) -> Sequence[Passage]:
        """See ``service.grounding.provider.Provider``.

        Raises:
            TimeoutError: It did not answer in time.
            WebhookFailed: It cannot be reached, or what it said is no answer.
        """
        body = orjson.dumps(_request_body(query))
        now = int(self._clock())
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-hatrack-timestamp": str(now),
            "x-hatrack-signature": sign(self._secret, str(now), body),
            **signed_headers(self._key, now, body),
        }
        left_s = max(0.001, deadline - asyncio.get_running_loop().time())
        with _ERRORS:
            async with self._client().post(
                self._url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=left_s),
            ) as response:
                if response.status != 200:
                    raise WebhookFailed(f"the retriever returned status {response.status}")
                return _parse_passages(await _read_response(response), query)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _request_body(query: Query) -> dict[str, Any]:
    return {
        "query": query.text,
        "messages": list(query.messages),
        "adapter": query.adapter,
        "project": query.project,
        "vector_store_ids": list(query.store_ids),
        "filters": query.filters,
        "required_filters": dict(query.required),
        "max_num_results": query.k,
        "score_threshold": query.threshold,
    }


async def _read_response(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise WebhookFailed(f"the retriever's response exceeds {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _parse_passages(body: bytes, query: Query) -> list[Passage]:
    try:
        passages = _WebhookResponse.model_validate_json(body).passages
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise WebhookFailed(f"the retriever's response is malformed: {where}: {first['msg']}") from None
    return [
        Passage(
            id=passage.id,
            text=passage.text,
            score=passage.score,
            source=passage.source,
            store_id=passage.vector_store_id or "",
            file_id=passage.file_id,
            attributes=passage.attributes,
            turns=None if passage.turns is None else [turn.model_dump() for turn in passage.turns],
        )
        for passage in passages
    ]
