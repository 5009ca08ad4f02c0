"""The gateway's uvicorn configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from service.config import Settings
from service.server.connections import Connections
from service.server.limits import ServerLimits, fit_to_open_files
from service.server.protocol import BoundedProtocol


def uvicorn_config(app: ASGIApp, settings: Settings, **more: Any) -> uvicorn.Config:
    """The configuration of a server for ``app``; ``more`` adds or overrides uvicorn's options."""
    limits = ServerLimits.of(settings)
    connections = Connections(replace(limits, max_connections=fit_to_open_files(limits)))
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": cast(Any, partial(BoundedProtocol, connections=connections)),
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nothing depends on the client's address or scheme
        "timeout_graceful_shutdown": settings.drain_s,
        "lifespan": "on",
        "ws": "none",
    }
    return uvicorn.Config(app, **(options | more))
