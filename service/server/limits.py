"""The server's limits in bytes and seconds, and the number of connections that file descriptors allow."""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from service.config import Settings

OTHER_FILES: Final = 256
"""File descriptors reserved for the database, logs, adapters and the engine's and trainer's sockets."""
_LOG = logging.getLogger("hatrack.server")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of ``ServerSettings`` in bytes and seconds."""

    max_connections: int
    max_peer_connections: int
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    max_header_bytes: int
    max_headers: int
    header_timeout_s: float
    body_timeout_s: float
    keep_alive_s: float

    @classmethod
    def of(cls, settings: Settings) -> ServerLimits:
        """The settings' limits."""
        return cls(
            settings.max_connections,
            settings.max_peer_connections,
            tuple(settings.trusted_proxies),
            int(settings.max_header_kib * 1024),
            settings.max_headers,
            settings.header_timeout_s,
            settings.body_timeout_s,
            settings.keep_alive_s,
        )


def fit_to_open_files(limits: ServerLimits) -> int:
    """The maximum number of connections that file descriptors allow, after raising the soft limit if possible.

    A connection may need two: a request in progress also has one to the engine.
    """
    needed = 2 * limits.max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits.max_connections
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    possible = max(16, (max(allowed, soft) - OTHER_FILES) // 2)
    if possible < limits.max_connections:
        _LOG.warning(
            "accepting at most %d connections instead of %d (HATRACK_MAX_CONNECTIONS): the process may open only "
            "%d files; raise its limit (ulimit -n)",
            min(possible, limits.max_connections),
            limits.max_connections,
            max(allowed, soft),
        )
    return min(possible, limits.max_connections)
