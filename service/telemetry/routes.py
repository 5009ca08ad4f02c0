"""GET /metrics."""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from service.access.authentication import key_in
from service.access.caller import Caller, Scope
from service.errors import HatrackError, NotFound
from service.http.schema import answers
from service.telemetry.telemetry import Telemetry

router = APIRouter(tags=["telemetry"])


@router.get(
    "/metrics",
    response_class=Response,
    responses=answers(
        None,
        NotFound,
        description="All metrics, as Prometheus reads them.",
        media_type="text/plain",
    ),
)
async def metrics(request: Request) -> Response:
    """Everything that the gateway counts, in Prometheus' text format.

    Where it is open, whoever shows no admin's key nor `metrics_key` sees no names of projects and adapters.

    Raises:
        NotFound: The setting `metrics` is `off`.
        Unauthenticated, Forbidden: It wants a key, and this is neither an admin's nor `metrics_key`.
        BadRequest: Two headers have different keys.
    """
    telemetry: Telemetry = request.app.state.telemetry
    settings = telemetry.settings
    if settings.metrics_access == "off":
        raise NotFound("metrics are disabled (HATRACK_METRICS=off)")
    metrics_key = settings.metrics_key.get_secret_value() if settings.metrics_key else None
    has_key = metrics_key is not None and _has_metrics_key(request, metrics_key)
    if settings.metrics_access == "key" and not has_key:
        request.app.state.authenticator.authenticate(request.headers).demand(Scope.ADMIN)
    named = has_key or settings.metrics_access == "key" or _is_admin(request)
    return Response(await telemetry.exposition.text(named=named), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _has_metrics_key(request: Request, metrics_key: str) -> bool:
    try:
        return hmac.compare_digest(key_in(request.headers).encode(), metrics_key.encode())
    except HatrackError:
        return False


def _is_admin(request: Request) -> bool:
    try:
        caller: Caller = request.app.state.authenticator.authenticate(request.headers)
    except HatrackError:
        return False  # nobody needs a key here: one that is wrong shows as much as none
    return caller.may(Scope.ADMIN)
