"""Streams multipart/form-data: no file is held in memory, and no declared length is trusted.

A form derives from :class:`MultipartForm`; its methods are called for each part's start, data and end, in a thread.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.concurrency import in_thread
from service.errors import BadRequest, TooLarge, WrongMediaType

FEED_BYTES: Final = 1024 * 1024
"""Bytes collected before a thread parses, hashes and writes them: a switch costs 0.1 ms, a MiB about 3 ms."""

IDLE_TIMEOUT_S: Final = 60.0
"""Longest pause within an upload, s."""

FRAMING_BYTES: Final = 64 * 1024
"""Upper bound of all boundaries and part headers together."""


def parse_boundary(content_type: str, expected: str) -> bytes:
    """The multipart boundary of a content type.

    Args:
        content_type: The request's header.
        expected: The error's message: what to upload, and how.

    Raises:
        WrongMediaType: It is not multipart/form-data, or has no valid boundary.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise WrongMediaType(expected)
    return boundary


async def feed_body(
    headers: Mapping[str, str], body: AsyncIterator[bytes], feed: Callable[[bytes], object], *, max_bytes: int
) -> None:
    """Pass the whole body to ``feed`` in a thread, in order, in chunks of about a MiB.

    Args:
        headers: The request's headers, names in lower case.
        body: The body's chunks.
        feed: An exception from it ends the reading.
        max_bytes: Maximum size of the body.

    Raises:
        TooLarge: The body has, or declares, more bytes.
        BadRequest: No data was received for IDLE_TIMEOUT_S.
    """
    check_content_length(headers, max_bytes)
    total, pending = 0, bytearray()
    async for chunk in with_idle_timeout(body):
        total += len(chunk)
        if total > max_bytes:
            raise too_large(max_bytes)
        pending += chunk
        if len(pending) >= FEED_BYTES:
            await in_thread(feed, bytes(pending))
            pending.clear()
    await in_thread(feed, bytes(pending))


def too_large(max_bytes: int) -> TooLarge:
    """The error for a body of more than ``max_bytes`` bytes; the rest is not read."""
    return TooLarge(f"the upload must have at most {max_bytes} bytes", headers={"connection": "close"})


def check_content_length(headers: Mapping[str, str], max_bytes: int) -> None:
    """Raise TooLarge if ``content-length`` exceeds ``max_bytes``. The header may lie, so the body is counted too."""
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise TooLarge(f"the upload must have at most {max_bytes} bytes; got {declared[:20]}")


async def with_idle_timeout(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body's chunks. Raises BadRequest if none is received for IDLE_TIMEOUT_S."""
    chunks = aiter(body)
    while True:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BadRequest(
                f"the upload stalled: no data was received for {IDLE_TIMEOUT_S:.0f} s", code="upload_stalled"
            ) from None
        yield chunk


class MultipartForm(ABC):
    """A multipart parser; subclasses handle the parts. Not thread-safe."""

    def __init__(self, boundary: bytes) -> None:
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self.end_part,
                "on_end": self._on_end,
            },
        )

    @abstractmethod
    def begin_part(self, name: str, filename: str | None) -> None:
        """A part begins; ``filename`` is None for a plain field."""

    @abstractmethod
    def part_data(self, data: bytes) -> None:
        """Some of the part's bytes."""

    @abstractmethod
    def end_part(self) -> None:
        """The part has ended."""

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body. Raises BadRequest, and what the part's methods raise."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest("the body is not well-formed multipart/form-data", code="invalid_multipart") from error

    def require_complete(self) -> None:
        """Raise BadRequest if the body fed so far is incomplete."""
        if not self._ended:
            raise BadRequest("the body ends before its last part is complete", code="invalid_multipart")

    # the parser's callbacks

    def _on_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        filename = options.get(b"filename")
        self.begin_part(
            options.get(b"name", b"").decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self.part_data(data[start:end])

    def _on_end(self) -> None:
        self._ended = True
