"""multipart/form-data read as it comes: nothing of the size of a file is ever in memory, and no length is believed.

A form derives from :class:`MultipartForm` and is told of each part's beginning, data and end, in a thread.
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
"""Bytes that are collected before a thread parses, hashes and writes them: a hop costs 0.1 ms, a MiB some 3 ms."""

IDLE_TIMEOUT_S: Final = 60.0
"""Longest silence of a client in the middle of its upload, s."""

FRAMING_BYTES: Final = 64 * 1024
"""Boundaries and headers of all parts together stay far below this."""


def boundary(content_type: str, wanted: str) -> bytes:
    """The boundary that a content type names.

    Args:
        content_type: The request's header.
        wanted: The error's message: what is uploaded here, and how.

    Raises:
        WrongMediaType: It is not multipart/form-data, or has no boundary that can be used.
    """
    kind, options = parse_options_header(content_type)
    found = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(found) <= 256:
        raise WrongMediaType(wanted)
    return found


async def feed_body(
    headers: Mapping[str, str], body: AsyncIterator[bytes], feed: Callable[[bytes], object], *, most: int
) -> None:
    """Give the whole body to ``feed`` in a thread, in order, in pieces of about a MiB.

    Args:
        headers: The request's headers, names in lower case.
        body: The body's chunks.
        feed: What it raises ends the reading.
        most: Most bytes of the body.

    Raises:
        TooLarge: The body has, or is said to have, more bytes.
        BadRequest: Nothing came for IDLE_TIMEOUT_S.
    """
    refuse_said_length(headers, most)
    total, waiting = 0, bytearray()
    async for chunk in in_time(body):
        total += len(chunk)
        if total > most:
            raise endless(most)
        waiting += chunk
        if len(waiting) >= FEED_BYTES:
            await in_thread(feed, bytes(waiting))
            waiting.clear()
    await in_thread(feed, bytes(waiting))


def endless(most: int) -> TooLarge:
    """The error for a body that goes on beyond ``most`` bytes without having said so; nobody reads on to its end."""
    return TooLarge(f"the upload has more than {most} bytes", headers={"connection": "close"})


def refuse_said_length(headers: Mapping[str, str], most: int) -> None:
    """Raise TooLarge where the ``content-length`` is more than ``most``; one that lies is found out by counting."""
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > most:
        raise TooLarge(f"the upload has {declared[:20]} bytes, at most {most} are taken")


async def in_time(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body's chunks. Raises BadRequest where nothing came for IDLE_TIMEOUT_S."""
    chunks = aiter(body)
    while True:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BadRequest(f"nothing came for {IDLE_TIMEOUT_S:.0f} s", code="upload_stalled") from None
        yield chunk


class MultipartForm(ABC):
    """Which part the parser is in; derive and say what is done with it. Not thread-safe: fed by one at a time."""

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
        """A part begins; ``filename`` is None where it is a plain field."""

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

    def demand_end(self) -> None:
        """Raise BadRequest where the body that was fed is not whole."""
        if not self._ended:
            raise BadRequest("the body ends in the middle of a part", code="invalid_multipart")

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
