"""The dialect of `/v1/messages`: Anthropic's events and errors.

vLLM names the model in the stream's first event alone; the counts come there (the prompt's) and in `message_delta`.
The first event is held until another one follows, so that a request that fails at once gets an error's status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import orjson

from service.errors import HatrackError
from service.http.stream import END, TokenUsage
from service.inference.dialect import Dialect
from service.inference.fields import Table
from service.inference.relay import EventRelay, Renamer, are_objects, count_in, usage_at
from service.inference.tools import forced_tools, make_strict
from service.registry.catalog import VersionSettings

_NAMES = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_COUNTS = re.compile(f'"({"|".join(_NAMES)})":(\\d+)'.encode())
_MESSAGE = b"event: message_"
_ERROR = b"event: error\n"
_DATA = b'\ndata: {"type":"'
_DELTA = b"event: content_block_delta\n"
_START = b"event: message_start\n"
_MESSAGE_DELTA = b"event: message_delta\n"
_STOP = b"event: message_stop\n"
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_ENGINES_ID, _ID = b'"id":"chatcmpl-', b'"id":"msg_'

ERROR_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
)
"""By our status; every other 4xx is an `invalid_request_error`, every other 5xx an `api_error`."""


def error_payload(error: HatrackError, request_id: str) -> bytes:
    """Anthropic's error object, with our code and the field's name as members that its clients do not look at."""
    kind = ERROR_TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    inner = {"type": kind, "message": error.message, "code": error.code, "param": error.param}
    return orjson.dumps({"type": "error", "error": inner, "request_id": request_id})


def message_usage(data: bytes) -> TokenUsage | None:
    """The usage in a message or event, or None; Anthropic counts cached tokens beside `input_tokens`, not in it."""
    usage = usage_at(data)
    if usage is None:
        return None
    counts: dict[bytes, int] = {name: int(value) for name, value in _COUNTS.findall(usage)}
    return _usage({name: counts.get(name.encode(), 0) for name in _NAMES})


def _usage(counts: Mapping[str, int]) -> TokenUsage:
    cached = counts["cache_read_input_tokens"]
    prompt = counts["input_tokens"] + cached + counts["cache_creation_input_tokens"]
    return TokenUsage(prompt, counts["output_tokens"], cached)


class MessagesRelay(EventRelay):
    """Begins with `message_start`, ends with `message_stop`."""

    __slots__ = ("_held", "_start_usage")

    def __init__(self, renamer: Renamer) -> None:
        super().__init__(renamer)
        self._start_usage: TokenUsage | None = None
        self._held: list[bytes] = []

    def _process(self, block: bytes) -> bytes:
        if self._held or _MESSAGE in block or _ERROR in block or not self._is_plain(block, block.count(END)):
            block = self._scan(block)
        self.events += block.count(_DELTA)
        return block

    def _is_plain(self, block: bytes, events: int) -> bool:
        return block.count(_DATA) == events and are_objects(block, events, b"event: ")

    def _scan(self, block: bytes) -> bytes:
        output: list[bytes] = []
        for event in block.split(END)[:-1]:
            if event.startswith(_ERROR):
                self.error = event.partition(b"\ndata: ")[2]
                break
            self.error = self._fault(event)
            if self.error is not None:
                break
            if event.startswith(_START):
                self._start_usage = message_usage(event)
                self._held = [self._rename(event).replace(_ENGINES_ID, _ID, 1), END, _PING]
                continue
            output += self._held
            self._held = []
            if event.startswith(_MESSAGE_DELTA):
                self.usage = message_usage(event)
            output += (event, END)
            if event.startswith(_STOP):
                self.done = True
                break
        return b"".join(output)

    def counted(self) -> TokenUsage | None:
        """The engine's count, else the prompt's and the number of events with content."""
        if self.usage is not None or self._start_usage is None:
            return self.usage
        start = self._start_usage
        return TokenUsage(start.prompt_tokens, self.events, start.cached_tokens, exact=False)

    def error_event(self, error: HatrackError, request_id: str) -> bytes:
        """Anthropic's error event."""
        return _error_event(error, request_id)


def _error_event(error: HatrackError, request_id: str) -> bytes:
    return b"event: error\ndata: " + error_payload(error, request_id) + END


class Messages(Dialect):
    """Anthropic's Messages API."""

    id_header: ClassVar[bytes | None] = b"request-id"
    sampling_names: ClassVar[Mapping[str, str]] = MappingProxyType({"stop": "stop_sequences"})

    def error_body(self, error: HatrackError, request_id: str) -> bytes:
        return error_payload(error, request_id)

    def error_event(self, error: HatrackError, request_id: str, _last: bytes) -> bytes:
        return _error_event(error, request_id)

    def apply_settings(self, body: dict[str, Any], settings: VersionSettings, table: Table, *, generates: bool) -> None:
        super().apply_settings(body, settings, table, generates=generates)
        if isinstance(body.get("stop_sequences"), str):  # a version's default may be one string
            body["stop_sequences"] = [body["stop_sequences"]]

    def _add_system_prompt(self, body: dict[str, Any], prompt: str) -> None:
        if "system" not in body and not any(message["role"] == "system" for message in body["messages"]):
            body["system"] = prompt

    def force_tools(self, body: dict[str, Any]) -> None:
        choice = body.get("tool_choice", {})
        if choice.get("type") in ("any", "tool"):
            for tool in forced_tools(body.get("tools", ()), choice.get("name")):
                make_strict(tool, "input_schema")

    def gateway_fields(self, _body: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def relay(self, renamer: Renamer, _body: Mapping[str, Any]) -> EventRelay:
        return MessagesRelay(renamer)

    def usage(self, answer: bytes, parsed: Mapping[str, Any] | None) -> TokenUsage | None:
        if parsed is None:
            return message_usage(answer)
        usage = parsed.get("usage")
        return _usage({name: count_in(usage, name) for name in _NAMES}) if isinstance(usage, dict) else None

    def answer(self, answer: bytes, renamer: Renamer) -> bytes:
        return renamer.rename(answer).replace(_ENGINES_ID, _ID, 1)


MESSAGES = Messages()
