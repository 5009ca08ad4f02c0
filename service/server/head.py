"""What the head of a request must be, beyond what the parser checks: nothing in it may be read in two ways.

llhttp, the parser, refuses by itself: line folding, a bare LF or CR, control characters, a space before the colon, a
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
"""Headers whose values add up to one list, so that a second line of one changes no meaning. None of them decides who
a caller is or what it asks for."""


def check_head(version: str, headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    """The names of the headers, which are in lower case; refuses a head that two readers may understand differently.

    Raises:
        BadRequest: ``repeated_header``: a header that has one value comes more than once. ``invalid_http``: an
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
    seen = set()
    for name, _ in headers:
        if name in seen and name not in REPEATABLE:
            raise BadRequest(
                f"The header `{_shown(name)}` was sent more than once; send it once.",
                param=_shown(name),
                code="repeated_header",
            )
        seen.add(name)


def _shown(text: bytes) -> str:
    return text[:64].decode("ascii", "replace")
