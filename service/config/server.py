"""The settings of the HTTP server, a part of ``service.config.Settings``: what any client may take, key or not."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, IPvAnyNetwork, field_validator
from pydantic_settings import BaseSettings, NoDecode

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@A-Z:\[\]*]+)(:[1-9][0-9]{0,4})?")


class ServerSettings(BaseSettings):
    """Bounds on connections and on requests that are not authenticated yet."""

    max_connections: int = Field(
        2048,
        ge=1,
        description=(
            "Maximum number of open connections. Beyond it, an idle connection is closed for the new one; if none is "
            "idle, the new one gets 503. Lowered automatically to fit the process's open-file limit."
        ),
    )
    max_peer_connections: int = Field(
        512,
        ge=1,
        description="Maximum number of open connections from one client address (one /64 for IPv6); then 429.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        ("127.0.0.0/8", "::1/128"),
        validate_default=True,
        description=("Networks exempt from `max_peer_connections`, such as a load balancer's, separated by spaces."),
    )
    max_header_kib: float = Field(
        32, ge=1, le=1024, description="Maximum size of a request line and headers, KiB; then 431."
    )
    max_headers: int = Field(100, ge=10, le=10_000, description="Maximum number of headers in a request; then 431.")
    header_timeout_s: float = Field(
        15,
        gt=0,
        description="Time limit from a connection's start or a request's first byte to the end of its headers, s.",
    )
    body_timeout_s: float = Field(
        30,
        gt=0,
        description=(
            "Time limit for a body that arrives below 240 bytes/s, or for a client that takes its answer as slowly, s."
        ),
    )
    keep_alive_s: float = Field(
        75, gt=0, description="How long an idle connection is kept open, s; should exceed a proxy's own keep-alive."
    )
    drain_s: float = Field(
        120,
        ge=0,
        le=86_400,
        description="How long a gateway, front or agent that stops lets requests go on, s; then their streams end in "
        "an error.",
    )
    stop_delay_s: float = Field(
        0,
        ge=0,
        le=3600,
        description="How long a gateway or front that gets SIGTERM still takes requests while its `/readyz` is 503, s: "
        "until the balancers before it have seen that.",
    )

    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description=(
            "Origins whose pages may call the gateway from a browser, such as `https://app.example.com`, separated by "
            "spaces; `*`: any. Unset: none."
        ),
    )

    @field_validator("trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _words_of(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin[:200]!r} is no origin: use `https://host` or `http://host:port` in lower case, without a "
                    "path or a slash at the end, or `*`"
                )
        return origins
