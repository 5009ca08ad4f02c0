"""What gateway and embedder say to each other: frames over HTTP on a Unix socket, arrays as they lie in memory.

A frame is the length of a JSON header (4 bytes, big-endian), the header, and the bytes of the arrays that it announces
in ``sizes``. ``POST /embed`` answers with one frame; ``POST /index`` with as many as there are, the last of which says
``end``: alone, with the document's ``error``, or with ``busy`` or ``reader``, why it is to be tried again later
(``reader``: the process that read the document ended, which may be the document's doing).

``POST /embeddings`` takes ``{"input": [texts], "single", "model", "base64", "dimensions"}`` and answers with the JSON
that the caller gets, so that the gateway need not look into megabytes of numbers, and its tokens in a header; or with
400 and ``{"error", "param", "code"}``, or 502 or 503 and ``{"error"}``. ``single``: the caller sent one text, no array.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import orjson

from service.errors import BadGateway
from service.knowledge.segment import Segment, Vectors
from service.knowledge.text import PassageText

MAX_INPUT_BYTES: Final = 16 * 1024 * 1024
"""Of a request to the embedder."""
TOKENS_HEADER: Final = "x-hatrack-tokens"
MAX_HEADER: Final = 64 * 1024 * 1024
MAX_BLOB: Final = 256 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")

ReadExactly = Callable[[int], Awaitable[bytes]]


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Pack a header and blobs into one frame."""
    text = orjson.dumps({**header, "sizes": [len(blob) for blob in blobs]})
    return b"".join([_LENGTH.pack(len(text)), text, *blobs])


async def unpack(read: ReadExactly) -> tuple[bytes, list[bytes]]:
    """A frame's header, not parsed yet, and its blobs.

    Raises:
        BadGateway: It is not a frame.
        asyncio.IncompleteReadError: The frame is cut off.
    """
    (length,) = _LENGTH.unpack(await read(_LENGTH.size))
    if length > MAX_HEADER:
        raise BadGateway("the embedder sent an invalid frame", code="embedder_error")
    header = await read(length)
    sizes = _sizes(header)
    return header, [await read(size) for size in sizes]


def _sizes(header: bytes) -> list[int]:
    # at the header's end, so that the loop of the gateway need not parse a megabyte of text for four numbers
    tail = header[header.rfind(b'"sizes":') :]
    sizes = orjson.loads(b"{" + tail)["sizes"] if tail.startswith(b'"sizes":') else None
    if not isinstance(sizes, list) or not all(isinstance(size, int) and 0 <= size <= MAX_BLOB for size in sizes):
        raise BadGateway("the embedder sent an invalid frame", code="embedder_error")
    return sizes


def pack_vectors(vectors: Vectors) -> bytes:
    """Pack vectors, (n, dimensions), into a frame."""
    return pack({"rows": len(vectors)}, [vectors.astype("<f4", copy=False).tobytes()])


def vectors_of(header: bytes, blobs: Sequence[bytes]) -> Vectors:
    """The inverse of :func:`pack_vectors`: (n, dimensions)."""
    return np.frombuffer(blobs[0], dtype="<f4").reshape(int(orjson.loads(header)["rows"]), -1)


def pack_batch(segment: Segment, passages: Sequence[PassageText], total: int) -> bytes:
    """Pack some of a document's ``total`` passages into a frame."""
    return pack({"passages": [asdict(passage) for passage in passages], "total": total}, segment.dump())


def batch_of(header: bytes, blobs: Sequence[bytes]) -> tuple[Segment, list[PassageText], int]:
    """The inverse of :func:`pack_batch`. Raises ValueError where the arrays do not fit together."""
    content = orjson.loads(header)
    passages = [PassageText(**fields) for fields in content["passages"]]
    vectors, offsets, terms, counts = blobs
    return Segment.load((vectors, offsets, terms, counts), len(passages)), passages, content["total"]
