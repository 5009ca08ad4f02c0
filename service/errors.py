"""One exception tree, one shape on the wire: OpenAI's ``{"error": {message, type, param, code}}``.

Exception
├── SettingsError            a start-up mistake; never reaches a client
└── HatrackError             status, type and code stand on the class
    ├── BadRequest           400  the request itself is wrong
    │   ├── UnknownField     400  a field in no table
    │   └── FieldRefused     400  a field that no caller may set
    ├── Unauthenticated      401
    ├── Forbidden            403
    │   └── SourceNotAllowed 403
    ├── NotFound             404
    │   ├── AdapterNotFound  404
    │   ├── ModelNotFound    404
    │   └── NoLiveVersion    404
    ├── MethodNotAllowed     405
    ├── RequestTimeout       408  the request came too slowly
    ├── Conflict             409
    ├── TooLarge             413
    ├── UriTooLong           414
    ├── WrongMediaType       415
    ├── RangeNotSatisfiable  416
    ├── Unprocessable        422  well formed, but cannot be done
    │   ├── SourceNotFound   422  what a push names is not there
    │   └── SourceDamaged    422  … or came with other bytes than its digest says
    ├── RateLimited          429
    │   ├── RequestsLimited  429  too many requests, a minute or at once
    │   ├── TokensLimited    429  too many tokens a minute
    │   ├── TooManyFetches   429  of pushes from a source
    │   └── QuotaSpent       429  the day's tokens or the month's money: retrying soon does not help
    │       └── RequestOverQuota 429  the request alone is more than a day's tokens: retrying never helps
    ├── HeadersTooLarge      431
    ├── Internal             500
    ├── AdapterNotFinite     500  the adapter's numbers are not numbers
    ├── BadGateway           502  the engine gave something that is no answer
    │   ├── InvalidAnswer    502  … with status 200; asked again, it may answer well
    │   ├── EngineCut        502  it went away before the answer was complete
    │   └── SourceFailed     502  what a push names cannot be fetched now
    ├── Unavailable          503
    │   ├── EngineUnavailable
    │   │   └── EngineUnreachable
    │   ├── TrainerUnavailable
    │   └── StoreUnavailable      the object store does not answer
    │       └── StoreRefused      … or refuses the gateway
    ├── Timeout              504
    │   └── SourceTimeout    504
    └── DiskFull             507
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import ClassVar, Final

import orjson

from adapters import errors as adapter_errors
from adapters.errors import AdapterError

_LOG: Final = logging.getLogger("hatrack.http")


class SettingsError(Exception):
    """A setting is wrong; the message is for the person at the terminal."""


class HatrackError(Exception):
    """An error that a client sees.

    Args:
        message: One or two sentences: the field, what was found, what is allowed.
        param: The request's field at fault, in OpenAI's dotted form, or None.
        code: Overrides the class's code.
        headers: More response headers.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retry: ClassVar[bool | None] = None
    """Whether OpenAI's clients should retry (`x-should-retry`); None leaves it to the status."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _text(message)
        self.param = param if param is None else _text(param)
        self.code = code or self.default_code
        self.headers = dict(headers or {})
        if self.retry is not None:
            self.headers.setdefault("x-should-retry", "true" if self.retry else "false")

    def body(self) -> bytes:
        """The response body, UTF-8 JSON."""
        return orjson.dumps(self.payload())

    def payload(self) -> dict[str, dict[str, str | None]]:
        """The response body as a dict."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _text(text: str) -> str:
    """``text`` as UTF-8 can hold it: a lone surrogate, which may come from a client's escapes, becomes `?`."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class BadRequest(HatrackError):
    status, type = 400, "invalid_request_error"
    default_code: ClassVar[str | None] = "invalid_value"


class UnknownField(BadRequest):
    default_code = "unknown_parameter"


class FieldRefused(BadRequest):
    default_code = "parameter_refused"


class Unauthenticated(HatrackError):
    status, type, default_code = 401, "authentication_error", "invalid_api_key"


class Forbidden(HatrackError):
    status, type, default_code = 403, "permission_error", "insufficient_scope"


class NotFound(HatrackError):
    status, type = 404, "invalid_request_error"
    default_code: ClassVar[str | None] = "not_found"


def no_such_route(method: str, path: str, groups: Collection[str] = ()) -> NotFound:
    """The error for a path that no route has, with the path that was probably meant.

    Args:
        groups: First parts of the paths under `/v1`, such as `chat`.
    """
    shown = path if len(path) <= 100 else f"{path[:100]}…"
    hint = _meant_path(path, groups)
    message = f"No such route: {method} {shown}. {hint or 'The API is under /v1; see /docs.'}"
    return NotFound(message, code="unknown_route")


def _meant_path(path: str, groups: Collection[str]) -> str:
    """What is wrong with the `/v1` of a path; empty if nothing is known to be."""
    before, _, after = path.rpartition("/v1/")
    shown = after if len(after) <= 100 else f"{after[:100]}…"
    if before and set(before.split("/")) == {"", "v1"}:
        return f"`/v1` is there more than once: did you mean /v1/{shown}? Once, at the end of the base URL, is enough."
    if before and after.split("/")[0] in groups:
        return f"`/v1` must come first: did you mean /v1/{shown}?"
    if path.strip("/").split("/")[0] in groups:
        return f"`/v1` is missing: did you mean /v1{path[:100]}? The base URL of a client ends in it."
    return ""


class AdapterNotFound(NotFound):
    """The adapter does not exist, or the key may not see it."""

    default_code = "adapter_not_found"


class ModelNotFound(NotFound):
    default_code = "model_not_found"


class NoLiveVersion(NotFound):
    default_code = "no_live_version"


class MethodNotAllowed(HatrackError):
    status, type, default_code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(HatrackError):
    status, type, default_code = 408, "invalid_request_error", "request_timeout"


class Conflict(HatrackError):
    status, type, default_code = 409, "invalid_request_error", "conflict"
    retry = False


class TooLarge(HatrackError):
    status, type, default_code = 413, "invalid_request_error", "request_too_large"


class UriTooLong(HatrackError):
    status, type, default_code = 414, "invalid_request_error", "uri_too_long"


class WrongMediaType(HatrackError):
    status, type, default_code = 415, "invalid_request_error", "unsupported_media_type"


class RangeNotSatisfiable(HatrackError):
    status, type, default_code = 416, "invalid_request_error", "range_not_satisfiable"


class Unprocessable(HatrackError):
    status, type, default_code = 422, "invalid_request_error", "unprocessable"


class RateLimited(HatrackError):
    status, type = 429, "rate_limit_error"
    default_code: ClassVar[str | None] = "rate_limit_exceeded"


class RequestsLimited(RateLimited):
    type = "requests"


class TokensLimited(RateLimited):
    type = "tokens"


class QuotaSpent(RateLimited):
    type = "insufficient_quota"
    default_code = "insufficient_quota"
    retry = False


class RequestOverQuota(QuotaSpent):
    default_code = "request_over_quota"


class HeadersTooLarge(HatrackError):
    status, type, default_code = 431, "invalid_request_error", "headers_too_large"


class Internal(HatrackError):
    status, type, default_code = 500, "server_error", "internal_error"


class AdapterNotFinite(HatrackError):
    """The adapter's activations became NaN or infinite; a retry gives the same result."""

    status, type, default_code = 500, "server_error", "adapter_not_finite"
    retry = False


class BadGateway(HatrackError):
    status, type = 502, "server_error"
    default_code: ClassVar[str | None] = "engine_error"
    retry: ClassVar[bool | None] = False


class EngineRefused(BadGateway):
    """The engine refused a request of the gateway's own; ``reason`` is its message."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EngineCut(BadGateway):
    """The connection to the engine was lost before its answer was complete."""

    default_code = "engine_cut"
    retry = None


class InvalidAnswer(BadGateway):
    """The engine answered with status 200 and what is not JSON of the API; asked again, it may answer well."""

    retry = None


class Unavailable(HatrackError):
    """Nothing can serve the request now; `retry_after` (seconds) says when to retry."""

    status, type = 503, "server_error"
    default_code: ClassVar[str | None] = "unavailable"

    def __init__(
        self, message: str, *, retry_after: int = 5, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code, headers={"retry-after": str(retry_after)})


class EngineUnavailable(Unavailable):
    default_code = "engine_unavailable"


class EngineUnreachable(EngineUnavailable):
    """Nothing listens at the engine's address."""


class TrainerUnavailable(Unavailable):
    """The trainer is off or does not answer; inference is not affected."""

    default_code = "trainer_unavailable"


class StoreUnavailable(Unavailable):
    """The object store does not answer; ``reason`` is what was found, for the operator."""

    default_code = "store_unavailable"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreRefused(StoreUnavailable):
    """It answers, and will not do what the gateway asks; only the operator can change that."""


class Timeout(HatrackError):
    status, type, default_code = 504, "server_error", "timeout"


class DiskFull(HatrackError):
    status, type, default_code = 507, "server_error", "disk_full"
    retry = False


# pushes from a source


class SourceNotAllowed(Forbidden):
    """The operator's settings do not let the gateway go there."""

    default_code = "source_not_allowed"


class SourceNotFound(Unprocessable):
    """There is no such repository, folder or file, or not for the gateway's credentials."""

    default_code = "source_not_found"


class SourceDamaged(Unprocessable):
    """What came is not what the source's digest, or the request's, says."""

    default_code = "source_digest_mismatch"


class SourceFailed(BadGateway):
    """The source cannot be reached, or does not answer as it should."""

    default_code = "source_failed"
    retry = None


class SourceTimeout(Timeout):
    """The whole took too long; what has come is kept for the next attempt."""

    default_code = "source_timeout"


class TooManyFetches(RateLimited):
    """Too many fetches run at once."""

    default_code = "too_many_fetches"


_STATUS: Final[tuple[tuple[type[AdapterError], type[HatrackError]], ...]] = (
    (adapter_errors.TooLarge, TooLarge),
    (adapter_errors.PickleRefused, WrongMediaType),
    (adapter_errors.DiskFull, DiskFull),
)


def to_http(error: AdapterError) -> HatrackError:
    """The HTTP error for an adapter error: 422 with its code; 413, 415 or 507 where these fit better."""
    kind = next((http for cause, http in _STATUS if isinstance(error, cause)), Unprocessable)
    return kind(error.message, param=error.param, code=error.code)


def to_hatrack_error(error: Exception, request_id: str | None) -> HatrackError:
    """The error that a client gets for any exception; an unexpected one is logged and becomes a 500."""
    if isinstance(error, HatrackError):
        return error
    if isinstance(error, AdapterError):
        return to_http(error)
    _LOG.error("a request failed unexpectedly", exc_info=error, extra={"request_id": request_id})
    return Internal("the gateway failed; its log has the reason under this request id")
