"""GET /metrics."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from service.access.caller import Scope
from service.errors import NotFound
from service.telemetry.telemetry import Telemetry

router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything that the gateway counts, in Prometheus' text format.

    Raises:
        NotFound: The setting `metrics` is `off`.
        Unauthenticated, Forbidden: It wants a key, and this is neither an admin's nor `metrics_key`.
    """
    telemetry: Telemetry = request.app.state.telemetry
    settings = telemetry.settings
    if settings.metrics_access == "off":
        raise NotFound("there is nothing here")
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    wanted = settings.metrics_key.get_secret_value() if settings.metrics_key else None
    known = wanted is not None and hmac.compare_digest(given.encode(), wanted.encode())
    if settings.metrics_access == "key" and not known:
        request.app.state.authenticator.authenticate(request.headers).demand(Scope.ADMIN)
    return Response(await telemetry.exposition.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
