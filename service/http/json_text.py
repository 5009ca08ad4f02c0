"""Parses untrusted JSON without blocking the event loop: it may have no more values than are parsed in about 50 ms.

The parser cannot be interrupted and holds the GIL, so a thread would not help. Its time depends less on bytes than on
values: measured on two shared cores, 300,000 numbers or strings take 10 to 40 ms, and 50,000 arrays, objects or keys
5 to 40 ms, including the check of their depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from service.errors import BadRequest

MAX_VALUES: Final = 300_000
"""Maximum values in one body: more than the token ids of a prompt that fills a context of 262,144."""
MAX_CONTAINERS: Final = 50_000
"""Maximum arrays, objects and keys in one body: each costs several times as much as a number or string."""


def load_json(text: bytes | bytearray, *, param: str | None = None) -> Any:
    """The JSON value of a body, or of the part ``param`` of one.

    The parser is strict (UTF-8, no NaN or Infinity); the last of repeated keys wins.

    Raises:
        BadRequest: It is not JSON, or has more than MAX_VALUES values or MAX_CONTAINERS arrays, objects and keys.
    """
    where = f"`{param}`" if param else "the body"
    code = None if param else "invalid_json"
    excess = excess_of(text)
    if excess is not None:
        raise BadRequest(f"{where} must have at most {excess}", param=param, code=code)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{where} is not valid JSON: {why_not_json(text, error)}", param=param, code=code) from None


def why_not_json(text: bytes | bytearray, error: orjson.JSONDecodeError) -> str:
    """Why the text is not valid JSON, and at which byte."""
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 at byte {wrong.start}"
    return f"{error.msg} at byte {len(error.doc[: error.pos].encode())}"


def excess_of(*texts: bytes | bytearray) -> str | None:
    """The limit that texts exceed together, counted without parsing; None if they exceed none."""
    # what is counted has a byte of its own each: a bracket, a colon, or a comma
    if sum(map(len, texts)) <= min(MAX_CONTAINERS, MAX_VALUES):
        return None
    excess = _counted_excess(texts)
    if excess is None:
        return None
    # a quote that ends a text may be taken for an escaped one here: there are at least so many that are not
    if sum(text.count(b'"') - text.count(b'\\"') for text in texts) // 2 > MAX_VALUES + MAX_CONTAINERS:
        return f"{MAX_VALUES} values"
    return _counted_excess([_outside_texts(text) for text in texts])  # commas and brackets in texts are no values


def _counted_excess(texts: Sequence[bytes | bytearray]) -> str | None:
    opening = sum(text.count(b"[") + text.count(b"{") for text in texts)
    if opening + sum(text.count(b":") for text in texts) > MAX_CONTAINERS:
        return f"{MAX_CONTAINERS} arrays, objects and keys"
    # every value is the first in something that opens, or comes after a comma
    return f"{MAX_VALUES} values" if opening + sum(text.count(b",") for text in texts) > MAX_VALUES else None


def _outside_texts(text: bytes | bytearray) -> bytes:
    """``text`` without what is between quotes."""
    if b"\\\\" in text:
        text = text.replace(b"\\\\", b"")
    text = text.replace(b'\\"', b"")
    return b"".join(text.split(b'"')[::2])
