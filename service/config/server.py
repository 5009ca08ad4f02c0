"""The settings of the HTTP server, a part of ``service.config.Settings``: what any client may take, key or not."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, IPvAnyNetwork, field_validator
from pydantic_settings import BaseSettings, NoDecode


class ServerSettings(BaseSettings):
    """Bounds on connections and on requests that are not authenticated yet."""

    max_connections: int = Field(
        2048,
        ge=1,
        description=(
            "Most open connections; beyond that one that waits for a request is closed for the new one, and where none "
            "waits the new one gets 503. Lower where the process may not open enough files."
        ),
    )
    max_peer_connections: int = Field(
        512,
        ge=1,
        description="Most open connections of one client address (of one /64 with IPv6); then 429.",
    )
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        ("127.0.0.0/8", "::1/128"),
        validate_default=True,
        description=(
            "Networks whose addresses `max_peer_connections` does not count, such as a load balancer's, separated by "
            "spaces."
        ),
    )
    max_header_kib: float = Field(
        32, ge=1, le=1024, description="Most bytes of a request's line and headers, KiB; then 431."
    )
    max_headers: int = Field(100, ge=10, le=10_000, description="Most headers of a request; then 431.")
    header_timeout_s: float = Field(
        15,
        gt=0,
        description="Longest time from a connection's start or a request's first byte to its headers' end, s.",
    )
    body_timeout_s: float = Field(
        30,
        gt=0,
        description=(
            "Longest time that a body may come at under 240 bytes/s, and that a client may read nothing of its answer, "
            "s."
        ),
    )
    keep_alive_s: float = Field(
        75, gt=0, description="How long a connection is kept open for its next request, s; more than a proxy's own."
    )

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks_of(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value
