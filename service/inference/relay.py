"""Bytes from the engine to the client: rename the model, count tokens, end cleanly.

Nothing is parsed that need not be. The bytes ``"model":"`` cannot stand inside a JSON string, where quotes are escaped,
and no other object in an answer has a key `model` whose value is a digest: so the model is renamed by replacing bytes.
The same holds for the other markers looked for here.
"""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import orjson

from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, FAULT_CODES
from service.errors import (
    AdapterNotFinite,
    BadGateway,
    BadRequest,
    EngineUnavailable,
    HatrackError,
    InvalidAnswer,
    NotFound,
    TooLarge,
    Unprocessable,
)
from service.http.stream import END, TokenUsage
from service.registry.catalog import Target

EMBEDDINGS = "/v1/embeddings"
_CLASSES: dict[int, type[HatrackError]] = {400: BadRequest, 404: NotFound, 413: TooLarge, 422: Unprocessable}
_CODES = {"input_tokens": "context_length_exceeded", "input_text": "context_length_exceeded"}
"""vLLM's parameter names that mean that prompt and answer do not fit into the context."""
UNCHECKED_ERROR_TYPE = "Bad Request"
"""vLLM's error type for pydantic's messages, which describe its code and are not shown to callers."""
_COUNTS = re.compile(rb'"(prompt_tokens|completion_tokens|cached_tokens)":(\d+)')
MAX_MESSAGE = 1000
MAX_EVENT_BYTES: Final = 256 * 1024 * 1024
"""The largest have the log-probabilities of a whole prompt: some 200 MiB for 128,000 tokens with 20 alternatives."""
INTERNALS = re.compile(
    r"pydantic|Traceback|validation errors? for|\w\(\) (got|takes|missing)|keyword argument|positional argument"
    r"|object is not |object has no|has no attribute|not callable|<class |<function |\bat 0x[0-9a-f]|File \"|\bvllm\."
    r"|site-packages|\w\.py\b|\[type=|NoneType|(Type|Key|Value|Attribute|Index|Assertion|Runtime)Error",
)
"""An engine's refusal that tells of its code, not of the request: exceptions, functions, types, files."""
_LOG = logging.getLogger("hatrack.inference")
_INVALID_EVENT: Final = "invalid_event"
MAX_PARSED_BYTES: Final = 64 * 1024
"""A larger whole answer is judged by its two ends: to parse 200 MiB of log-probabilities takes a second."""
MAX_RENAMERS: Final = 4096
_USAGE = b'"usage":{'
MAX_USAGE_BYTES: Final = 4096
"""No engine's usage object is longer; what stands behind it may be the log-probabilities of a whole prompt."""
_WITHOUT_DATA = (b":", b"event:", b"id:", b"retry:")
"""Begin the lines of an event that are no data."""


def usage_at(data: bytes) -> bytes | None:
    """What an answer or event has from its last usage object on, MAX_USAGE_BYTES at most; None: it has none.

    The last one, because before it a response may repeat what the caller defined: a tool with a field `usage`.
    """
    at = data.rfind(_USAGE)
    return None if at < 0 else data[at + len(_USAGE) - 1 : at + MAX_USAGE_BYTES]


def find_usage(data: bytes) -> TokenUsage | None:
    """The usage object in an answer or event, or None."""
    usage = usage_at(data)
    if usage is None:
        return None
    counts: dict[bytes, int] = {name: int(value) for name, value in _COUNTS.findall(usage)}
    return TokenUsage(
        prompt_tokens=counts.get(b"prompt_tokens", 0),
        completion_tokens=counts.get(b"completion_tokens", 0),
        cached_tokens=counts.get(b"cached_tokens", 0),
    )


def usage_of(answer: Mapping[str, Any]) -> TokenUsage | None:
    """The usage in an answer that was parsed, or None."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    return TokenUsage(
        prompt_tokens=count_in(usage, "prompt_tokens"),
        completion_tokens=count_in(usage, "completion_tokens"),
        cached_tokens=count_in(details if isinstance(details, dict) else usage, "cached_tokens"),
    )


def count_in(usage: Mapping[str, Any], name: str) -> int:
    """The number of tokens that an engine gives under ``name``; 0 where that is missing or no such number."""
    count = usage.get(name)
    return count if type(count) is int and count >= 0 else 0


class Renamer:
    """Replaces the engine's model name by the name that the client requested."""

    __slots__ = ("_new", "_old")

    def __init__(self, target: Target) -> None:
        self._old = b'"model":"' + target.engine_model.encode() + b'"'
        self._new = b'"model":' + orjson.dumps(target.label)

    def rename(self, data: bytes) -> bytes:
        """``data`` with every model name replaced."""
        return data.replace(self._old, self._new)

    def rename_answer(self, answer: bytes) -> bytes:
        """A whole answer with its one model name replaced; the rest of it is not searched."""
        return answer.replace(self._old, self._new, 1)


_RENAMERS: dict[tuple[str, str], Renamer] = {}


def renamer_for(target: Target) -> Renamer:
    """The target's renamer, which its requests share."""
    key = target.engine_model, target.label
    renamer = _RENAMERS.get(key)
    if renamer is None:
        if len(_RENAMERS) >= MAX_RENAMERS:
            _RENAMERS.clear()
        renamer = _RENAMERS[key] = Renamer(target)
    return renamer


def check_answer(body: bytes, member: str | None, target: Target) -> dict[str, Any] | None:
    """The object that a whole answer of up to MAX_PARSED_BYTES is; None for a larger one, which is not parsed.

    Raises:
        InvalidAnswer: It is not a JSON object with the list ``member`` (None: any object).
    """
    if len(body) > MAX_PARSED_BYTES:
        has_ends = body[:64].lstrip().startswith(b"{") and body[-64:].rstrip().endswith(b"}")
        if has_ends and (member is None or f'"{member}"'.encode() in body):
            return None
    else:
        try:
            parsed = _parsed(body)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict) and (member is None or isinstance(parsed.get(member), list)):
            return parsed
    having = "" if member is None else f" with a list `{member}`"
    raise InvalidAnswer(f"the engine's answer for `{target.label}` is not a JSON object{having}")


def _parsed(body: bytes) -> Any:
    """The JSON; also that which Python writes and orjson refuses: integers of hundreds of digits.

    Raises:
        ValueError, RecursionError: It is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def are_objects(block: bytes, events: int, start: bytes) -> bool:
    """Whether each of the ``events`` in a block begins with ``start`` and ends with a JSON object's brace.

    No raw line break stands inside JSON, so nothing in a text is taken for the end of an event.
    """
    return (
        block.startswith(start)
        and block.endswith(b"}" + END)
        and (events == 1 or block.count(b"}" + END + start) == events - 1)
    )


class EventRelay(ABC):
    """Converts server-sent events from the engine, received in arbitrary chunks, to events for the client.

    There is one subclass for each streaming format. ``done`` is set by the engine's last event, ``error`` (JSON) by its
    error event, which is not passed on, or by an event that is not of the format; nothing is output after either.
    """

    __slots__ = ("_pending", "_rename", "done", "error", "events", "usage")
    _member: ClassVar[tuple[str, type]] = ("type", str)
    """What each event's object has in this format: the member's name, and its type."""

    def __init__(self, renamer: Renamer | None) -> None:
        self._rename = bytes if renamer is None else renamer.rename
        self._pending = bytearray()
        self.done = False
        self.error: bytes | None = None
        self.usage: TokenUsage | None = None
        self.events = 0
        """Events with content so far."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send to the client now: complete events only. Raises BadGateway for an endless event."""
        if self.done or self.error is not None:
            return b""
        pending = self._pending
        if not pending and chunk.endswith(END):
            return self._process(chunk)
        searched = max(0, len(pending) - 1)  # of what was there before, only the last byte can begin an end
        pending += chunk
        cut = pending.rfind(END, searched) + len(END)
        if cut < len(END):
            if len(pending) > MAX_EVENT_BYTES:
                raise BadGateway("the engine sent an event without an end")
            return b""
        block = bytes(pending[:cut])
        del pending[:cut]
        return self._process(block)

    @abstractmethod
    def _process(self, block: bytes) -> bytes:
        """Convert complete events for the client."""

    def _is_plain(self, _block: bytes, _events: int) -> bool:
        """Whether a block of so many events looks as vLLM writes them; decided without parsing any of them."""
        return True

    def _fault(self, event: bytes) -> bytes | None:
        """The error (JSON) that an event stands for: its own, or that it is not of this format. None: it is valid.

        Comments and events without data are valid. Parses the event only if it looks unlike vLLM's.
        """
        if self._is_plain(event + END, 1):
            return None
        lines = [line for line in event.split(b"\n") if line.strip() and not line.startswith(_WITHOUT_DATA)]
        if not lines:
            return None
        data = b"\n".join(line.removeprefix(b"data:") for line in lines)
        try:
            parsed = orjson.loads(data) if all(line.startswith(b"data:") for line in lines) else None
        except orjson.JSONDecodeError:
            parsed = None
        name, kind = self._member
        if isinstance(parsed, dict) and isinstance(parsed.get(name), kind):
            return None
        if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
            return data
        return orjson.dumps({"error": {"type": _INVALID_EVENT}})

    def counted(self) -> TokenUsage | None:
        """The engine's usage, else the number of events with content, each of at least one token."""
        if self.usage is not None or not self.events:
            return self.usage
        return TokenUsage(completion_tokens=self.events, exact=False)

    def error_event(self, error: HatrackError, _request_id: str) -> bytes:
        """The event that reports an error after the stream has begun."""
        return completions_error_event(error)


def completions_error_event(error: HatrackError) -> bytes:
    """The event of OpenAI's chat and text completions that reports an error."""
    return b"data: " + error.body() + END


class PassedEvents(EventRelay):
    """A stream that another process has made for the client: passed on as it is, in whole events, so that an error
    event can follow wherever it ends.

    Args:
        error_event: Formats an error, given the request's id and the events that were passed on last.
    """

    __slots__ = ("_format", "_last")

    def __init__(self, error_event: Callable[[HatrackError, str, bytes], bytes]) -> None:
        super().__init__(None)
        self._format = error_event
        self._last = b""

    def _process(self, block: bytes) -> bytes:
        self._last = block
        return block

    def rest(self) -> bytes:
        """What has come after the last whole event; for a stream that has ended well."""
        return bytes(self._pending)

    def error_event(self, error: HatrackError, request_id: str) -> bytes:
        """The error event of the client's dialect."""
        return self._format(error, request_id, self._last)


def engine_error(status: int, body: bytes, target: Target, path: str, embedder: str | None = None) -> HatrackError:
    """Convert an engine's error to the error for the client.

    Args:
        status: The engine's status; for an error event, any: its own `code` counts.
        body: The engine's JSON, or whatever it sent.
        target: The requested model; its digest never appears in a message.
        path: The engine's route.
        embedder: The name of the model that embeds where the requested one does not; None: there is none.
    """
    error = _error_object(body)
    code = error.get("code")
    if error.get("type") == _INVALID_EVENT:
        return InvalidAnswer(f"the engine's stream for `{target.label}` has an event that is not JSON of this API")
    if status == 200:
        status = code if type(code) is int else 500
    fault = next((name for name in (error.get("type"), code) if isinstance(name, str) and name in FAULT_CODES), None)
    if fault == ADAPTER_NOT_FINITE:
        return AdapterNotFinite(
            f"the adapter `{target.name}` produces NaN or infinite values for this prompt; no answer was generated",
            param="model",
        )
    if fault is not None:
        return BadGateway(f"the engine could not answer for `{target.label}`", code=fault)
    if status == 404 and path == EMBEDDINGS:
        hint = "" if embedder is None else f"; ask `{embedder}`"
        return NotFound(
            f"the model `{target.label}` does not support embeddings{hint}", param="model", code="model_not_embedding"
        )
    if status == 503:
        return EngineUnavailable("the engine cannot take requests now")
    if status == 404 and target.digest:  # of the names in a request the engine knows one only, the adapter's
        return BadGateway(f"the engine could not load `{target.label}`", code=ADAPTER_UNLOADABLE)
    kind = _CLASSES.get(status)
    if kind is None:
        # every other status of the engine is its own fault or ours
        return BadGateway(f"the engine could not answer for `{target.label}`")
    param = error.get("param")
    param = param.removeprefix("body.") if isinstance(param, str) else None
    message = error.get("message")
    if not isinstance(message, str) or error.get("type") == UNCHECKED_ERROR_TYPE:
        where = "" if param is None else f": invalid value for `{param[:100]}`"
        return kind(f"the engine rejected the request{where}", param=param)
    return kind(_public_message(message, target), param=param, code=None if param is None else _CODES.get(param))


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    inner = parsed.get("error", parsed)
    return inner if isinstance(inner, dict) else {}


def _public_message(message: str, target: Target) -> str:
    """The engine's message for the client: without the digest, and replaced if it describes internals."""
    if INTERNALS.search(message):
        _LOG.warning("the engine rejected a request with an internal message", extra={"reason": message[:2000]})
        return "the engine rejected the request: one of its values is not supported"
    return (message.replace(target.engine_model, target.label) if target.digest else message)[:MAX_MESSAGE]
