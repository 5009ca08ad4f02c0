"""JSON from outside, read without holding up the event loop: it may have no more values than are parsed in about 50 ms.

The parser runs in one piece and cannot be left, in a thread neither, for it keeps the interpreter's lock. What it takes
depends less on the bytes than on the values: measured on two shared cores, 300,000 numbers or texts
take 10 to 40 ms, 50,000 lists, objects or their keys 5 to 40 ms with the check of their depth.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from service.errors import BadRequest

MAX_VALUES: Final = 300_000
"""Values in one body: more than the token ids of a prompt that fills a context of 262,144."""
MAX_CONTAINERS: Final = 50_000
"""Lists, objects and their keys in one body: they take several times what numbers and texts take."""


def load_json(text: bytes | bytearray, *, param: str | None = None) -> Any:
    """The JSON value of a body, or of the part ``param`` of one.

    The parser is strict (UTF-8, no NaN or Infinity), and of a repeated key the last counts.

    Raises:
        BadRequest: It is not JSON, or has more than MAX_VALUES values or MAX_CONTAINERS lists, objects and keys.
    """
    where = f"`{param}`" if param else "the body"
    code = None if param else "invalid_json"
    excess = _excess(text)
    if excess is not None:
        raise BadRequest(f"{where} has more than {excess}", param=param, code=code)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"{where} is not JSON: {why_not_json(text, error)}", param=param, code=code) from None


def why_not_json(text: bytes | bytearray, error: orjson.JSONDecodeError) -> str:
    """What is wrong with it and where."""
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 at byte {wrong.start}"
    return f"{error.msg} at byte {len(error.doc[: error.pos].encode())}"


def _excess(text: bytes | bytearray) -> str | None:
    """What a text has too many of, if it has; counted without parsing it."""
    excess = _excess_of(text)
    if excess is None:
        return None
    # a quote that ends a text may be taken for an escaped one here: there are at least so many that are not
    if (text.count(b'"') - text.count(b'\\"')) // 2 > MAX_VALUES + MAX_CONTAINERS:
        return f"{MAX_VALUES} values"
    return _excess_of(_outside_texts(text))  # commas and brackets in texts are no values


def _excess_of(text: bytes | bytearray) -> str | None:
    opening = text.count(b"[") + text.count(b"{")
    if opening + text.count(b":") > MAX_CONTAINERS:
        return f"{MAX_CONTAINERS} lists, objects and keys"
    # every value is the first in something that opens, or comes after a comma
    return f"{MAX_VALUES} values" if opening + text.count(b",") > MAX_VALUES else None


def _outside_texts(text: bytes | bytearray) -> bytes:
    """``text`` without what is between quotes."""
    if b"\\\\" in text:
        text = text.replace(b"\\\\", b"")
    text = text.replace(b'\\"', b"")
    return b"".join(text.split(b'"')[::2])
