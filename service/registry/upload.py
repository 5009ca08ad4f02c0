"""The body of an upload: multipart/form-data, read as it comes, its weights handed on while they arrive.

Nothing of the size of an adapter is ever in memory, and nothing is believed: not the length that the client declares,
not a file's name. Files that can run code when they are opened are refused by name and by their first bytes, unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import orjson
from pydantic import ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from adapters.errors import PickleRefused
from service.errors import BadRequest, TooLarge, UnknownField, WrongMediaType
from service.registry.catalog import VersionSettings
from service.registry.locks import in_thread

KIB: Final = 1024
MIB: Final = 1024 * KIB
FEED_BYTES: Final = MIB
"""Bytes that are collected before a thread parses, hashes and writes them: a hop costs 0.1 ms, a MiB some 3 ms."""

IDLE_TIMEOUT_S: Final = 60.0
"""Longest silence of a client in the middle of its upload, s."""

BOUNDS: Final[Mapping[str, int]] = {
    "name": KIB,
    "alias": KIB,
    "config": MIB,
    "readme": MIB,
    "metadata": 256 * KIB,
    "settings": 256 * KIB,
}
"""Most bytes of each part but ``weights``, whose bound is a setting."""

PARTS: Final = (*BOUNDS, "weights")
FRAMING_BYTES: Final = 64 * KIB
"""Boundaries and headers of all parts together stay far below this."""

SNIFFED_BYTES: Final = 16
UNSAFE_SUFFIXES: Final = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
    | {".npz", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
)
_ARCHIVES: Final = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)

SAMPLING: Final[Mapping[str, tuple[type, float, float]]] = {
    "temperature": (float, 0.0, 2.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, -1, 1_000_000),
    "min_p": (float, 0.0, 1.0),
    "presence_penalty": (float, -2.0, 2.0),
    "frequency_penalty": (float, -2.0, 2.0),
    "repetition_penalty": (float, 0.01, 10.0),
    "max_tokens": (int, 1, 10_000_000),
    "seed": (int, -(2**63), 2**63 - 1),
}
"""Request fields that a version may set a default for: type, least and largest value."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What came beside the weights. ``alias`` is None where the part is missing, and empty for "no alias"."""

    name: str
    config: bytes
    readme: bytes | None
    metadata: dict[str, Any]
    settings: VersionSettings
    alias: str | None


async def receive(
    headers: Mapping[str, str], body: AsyncIterator[bytes], write: Callable[[bytes], object], *, max_weights: int
) -> Upload:
    """Read the whole body; the weights go to ``write`` in a thread, in order.

    Args:
        headers: The request's headers, names in lower case.
        body: The body's chunks.
        write: Called with pieces of the weights; what it raises ends the upload.
        max_weights: Most bytes of weights.

    Raises:
        WrongMediaType: Not multipart/form-data.
        TooLarge: A part, or the whole, is over its bound.
        BadRequest: Not well formed, or a part (`param`) is missing, repeated, unknown or not what it should be.
        PickleRefused: The weights are a pickle or an archive.
    """
    form = _Form(_boundary(headers.get("content-type", "")), write, max_weights)
    most = max_weights + sum(BOUNDS.values()) + FRAMING_BYTES
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > most:
        raise TooLarge(f"the upload has {declared[:20]} bytes, at most {most} are taken")
    total, waiting = 0, bytearray()
    async for chunk in _with_idle_timeout(body):
        total += len(chunk)
        if total > most:
            raise TooLarge(f"the upload has more than {most} bytes")
        waiting += chunk
        if len(waiting) >= FEED_BYTES:
            await in_thread(form.feed, bytes(waiting))
            waiting.clear()
    await in_thread(form.feed, bytes(waiting))
    return form.upload()


async def _with_idle_timeout(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
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


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 256:
        raise WrongMediaType(
            "an adapter is uploaded as multipart/form-data (with a boundary), with the files `config` and `weights`"
        )
    return boundary


class _Form:
    """The parser's callbacks: which part it is in, and where that part's bytes go."""

    def __init__(self, boundary: bytes, write: Callable[[bytes], object], max_weights: int) -> None:
        self._write = write
        self._max_weights = max_weights
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._part = ""
        self._parts: dict[str, bytearray] = {}
        self._weights = 0
        self._head = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BadRequest("the body is not well-formed multipart/form-data", code="invalid_multipart") from error

    def upload(self) -> Upload:
        """The parts, checked, once the whole body is fed."""
        if not self._ended:
            raise BadRequest("the body ends in the middle of a part", code="invalid_multipart")
        for part in ("name", "config", "weights"):
            if part not in self._parts:
                raise BadRequest(f"the part `{part}` is missing", param=part, code="missing_required_parameter")
        readme = self._parts.get("readme")
        return Upload(
            name=self._text("name") or "",
            config=bytes(self._parts["config"]),
            readme=None if readme is None else bytes(readme),
            metadata=self._object("metadata"),
            settings=parse_settings(self._object("settings")),
            alias=self._text("alias"),
        )

    def _text(self, part: str) -> str | None:
        if part not in self._parts:
            return None
        try:
            return self._parts[part].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"`{part}` is not UTF-8", param=part) from None

    def _object(self, part: str) -> dict[str, Any]:
        if not self._parts.get(part):
            return {}
        try:
            value = orjson.loads(self._parts[part])
        except orjson.JSONDecodeError:
            raise BadRequest(f"`{part}` is not JSON", param=part) from None
        if not isinstance(value, dict):
            raise BadRequest(f"`{part}` is {type(value).__name__}, a JSON object is expected", param=part)
        return value

    # the parser's callbacks

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        part = options.get(b"name", b"").decode("utf-8", "replace")
        if part not in PARTS:
            raise UnknownField(f"the part `{part[:100]}` is not known; known are {', '.join(PARTS)}", param=part[:100])
        if part in self._parts:
            raise BadRequest(f"the part `{part}` comes twice", param=part, code="repeated_parameter")
        suffix = PurePosixPath(options.get(b"filename", b"").decode("utf-8", "replace").lower()).suffix
        if part == "weights" and suffix in UNSAFE_SUFFIXES:
            raise PickleRefused(
                f"The weights are a `{suffix}` file: pickles and archives are never opened. "
                "Send adapter_model.safetensors.",
                param="weights",
            )
        self._part = part
        self._parts[part] = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "weights":
            self._take_weights(data[start:end])
            return
        kept, bound = self._parts[self._part], BOUNDS[self._part]
        if len(kept) + end - start > bound:
            raise TooLarge(f"`{self._part}` has more than {bound} bytes", param=self._part)
        kept += data[start:end]

    def _take_weights(self, data: bytes) -> None:
        self._weights += len(data)
        if self._weights > self._max_weights:
            raise TooLarge(f"`weights` has more than {self._max_weights} bytes", param="weights")
        if len(self._head) >= SNIFFED_BYTES:
            self._write(data)
            return
        self._head += data
        if len(self._head) >= SNIFFED_BYTES:
            refuse_unsafe(bytes(self._head[:SNIFFED_BYTES]))
            self._write(bytes(self._head))

    def _part_end(self) -> None:
        if self._part == "weights" and self._weights < SNIFFED_BYTES:
            self._write(bytes(self._head))
        self._part = ""

    def _end(self) -> None:
        self._ended = True


def refuse_unsafe(head: bytes) -> None:
    """Raise PickleRefused where a file's first 16 bytes are those of a pickle or an archive.

    A safetensors header may be 640 bytes long and so begin like a pickle (80 02): the brace behind its length decides.
    """
    if head[8:9] == b"{" and head[6:8] == b"\0\0":
        return
    if head.startswith(_ARCHIVES) or (head[:1] == b"\x80" and 2 <= head[1] <= 5):
        raise PickleRefused(
            "The weights are a pickle or an archive, which is never opened. Send adapter_model.safetensors.",
            param="weights",
        )


def parse_settings(value: dict[str, Any]) -> VersionSettings:
    """A version's settings.

    Raises:
        BadRequest: A value is not allowed; `param` is its dotted name.
        UnknownField: There is no such setting.
    """
    try:
        settings = VersionSettings.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(["settings", *(str(part) for part in first["loc"])])
        kind = UnknownField if first["type"] == "extra_forbidden" else BadRequest
        raise kind(f"`{param}`: {first['msg']}", param=param) from None
    for field, given in settings.sampling.items():
        _check_sampling(field, given)
    return settings


def _check_sampling(field: str, value: object) -> None:
    param = f"settings.sampling.{field[:100]}"
    if field == "stop":
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) and 0 < len(text) <= 256 for text in texts):
            raise BadRequest(f"`{param}` is a string or a list of strings of at most 256 characters", param=param)
        if len(texts) > 16:
            raise BadRequest(f"`{param}` has {len(texts)} strings, at most 16 are allowed", param=param)
        return
    if field not in SAMPLING:
        raise UnknownField(f"`{param}` cannot be set; allowed are {', '.join(SAMPLING)} and stop", param=param)
    kind, least, most = SAMPLING[field]
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not fits or not isinstance(value, int | float) or not least <= value <= most:
        raise BadRequest(
            f"`{param}` is {str(value)[:100]}, {'a number' if kind is float else 'a whole number'} "
            f"from {least:g} to {most:g} is allowed",
            param=param,
        )
