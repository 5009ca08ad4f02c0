"""Checks of a request's head beyond the parser's, against request smuggling: nothing in it may be ambiguous.

llhttp, the parser, already rejects: line folding, a bare LF or CR, control characters, a space before the colon, a
repeated or malformed Content-Length, and Content-Length beside Transfer-Encoding.
"""

from __future__ import annotations

from typing import Final

from service.errors import BadRequest

REPEATABLE: Final = frozenset(
    b"accept accept-charset accept-encoding accept-language anthropic-beta baggage cache-control cdn-loop connection "
    b"cookie forwarded if-match if-none-match keep-alive link openai-beta pragma prefer te trailer tracestate upgrade "
    b"via warning x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto".split()
)
"""Headers whose values form a list, so that repeating them is harmless. None of them affects authentication or the
request itself."""


def check_head(version: str, headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    """Reject an ambiguous head; returns the names of the headers, which must be in lower case.

    Raises:
        BadRequest: ``repeated_header``: a single-valued header is repeated. ``invalid_http``: an
            unknown version, no Host, or a Transfer-Encoding other than `chunked` alone.
    """
    names = {name for name, _ in headers}
    if len(names) != len(headers):
        _check_repeated(headers)
    if b"transfer-encoding" in names:
        coding = dict(headers)[b"transfer-encoding"]
        if coding.lower() != b"chunked" or version != "1.1":
            raise BadRequest(
                f"Transfer-Encoding must be `chunked`, with HTTP/1.1; got {_shown(coding)!r} with HTTP/{version}.",
                param="transfer-encoding",
                code="invalid_http",
            )
    if version == "1.1":
        if b"host" not in names:
            raise BadRequest("The Host header is missing.", param="host", code="invalid_http")
    elif version != "1.0":
        raise BadRequest(f"The HTTP version must be 1.1; got {version}.", code="invalid_http")
    return names


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    seen_names = set()
    for name, _ in headers:
        if name in seen_names and name not in REPEATABLE:
            raise BadRequest(
                f"The header `{_shown(name)}` was sent more than once; send it once.",
                param=_shown(name),
                code="repeated_header",
            )
        seen_names.add(name)


def _shown(text: bytes) -> str:
    return text[:64].decode("ascii", "replace")
