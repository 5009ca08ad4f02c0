"""The dialect of `/v1/responses`: a stream of named, numbered events around one response object.

vLLM names the model only in the response objects, which come in the first two events and in the last one: all others
go through as they are. It sends the first two before the model has done anything; they are held here until
something follows, so that a request that fails at once gets an error's status, and the time to the first byte is that
of the first token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import orjson

from service.errors import BadRequest, HatrackError
from service.grounding.config import MAX_STORES_NAMED
from service.grounding.fields import FIELD
from service.grounding.file_search import FILE_SEARCH, RESULTS, FileSearch
from service.grounding.injectors import RESPONSES_INJECTOR, PromptInjector
from service.http.stream import END, TokenUsage
from service.inference.dialect import Dialect
from service.inference.relay import EventRelay, Renamer, are_objects, count_in, usage_at
from service.inference.tools import forced_tools, make_strict

_COUNTS = re.compile(rb'"(input_tokens|output_tokens|cached_tokens)":(\d+)')
_RESPONSE = b'"response":{'
_ERROR = b"event: error\n"
_DELTA = b".delta\n"
"""Ends the `event:` line of every event with content; a line's end stands in no JSON."""
_NAME, _DATA = b"event: response.", b"\ndata: {"
_OPENING = (b"event: response.created\n", b"event: response.in_progress\n")
_COMPLETED = b"event: response.completed\n"
_INCOMPLETE = b"event: response.incomplete\n"
_LAST = (_COMPLETED, _INCOMPLETE, b"event: response.failed\n")
_COMPLETED_TYPE, _INCOMPLETE_TYPE = b'"type":"response.completed"', b'"type":"response.incomplete"'
_DETAILS = b'"incomplete_details":'
"""An object where the answer was cut at its longest; its first place in the event is before all that callers give."""
_SEQUENCE = re.compile(rb'"sequence_number":(\d+)')


def response_usage(data: bytes) -> TokenUsage | None:
    """The usage of the response object in an answer or in a stream's last event, or None."""
    usage = usage_at(data)
    if usage is None:
        return None
    counts: dict[bytes, int] = {name: int(value) for name, value in _COUNTS.findall(usage)}
    return TokenUsage(counts.get(b"input_tokens", 0), counts.get(b"output_tokens", 0), counts.get(b"cached_tokens", 0))


class ResponsesRelay(EventRelay):
    """Ends with `response.completed`, `.incomplete` or `.failed`; there is no `[DONE]`."""

    __slots__ = ("_held", "_last")

    def __init__(self, renamer: Renamer) -> None:
        super().__init__(renamer)
        self._held: list[bytes] = []
        self._last = b""

    def _process(self, block: bytes) -> bytes:
        if self._held or _RESPONSE in block or _ERROR in block or not self._is_plain(block, block.count(END)):
            block = self._scan(block)
        self.events += block.count(_DELTA)
        self._last = block or self._last
        return block

    def _is_plain(self, block: bytes, events: int) -> bool:
        return block.count(_DATA) == events and are_objects(block, events, _NAME)

    def _scan(self, block: bytes) -> bytes:
        output: list[bytes] = []
        for event in block.split(END)[:-1]:
            if event.startswith(_ERROR):
                self.error = event.partition(b"\ndata: ")[2]
                break
            self.error = self._fault(event)
            if self.error is not None:
                break
            if event.startswith(_OPENING):
                self._held.append(self._rename(event) + END)
                continue
            output += self._held
            self._held = []
            if event.startswith(_LAST):
                output.append(self._rename(self._end(event)) + END)
                self.done = True
                break
            output.append(event + END)
        return b"".join(output)

    def _end(self, event: bytes) -> bytes:
        """The last event; vLLM calls it `completed` where the answer was cut at its longest, OpenAI `incomplete`."""
        self.usage = response_usage(event)
        details = event.partition(_DETAILS)[2]
        if not details.startswith(b"{") or not event.startswith(_COMPLETED):
            return event
        # the type stands beside the response, which may hold the same bytes in the caller's own metadata: the last
        # one is the event's
        before, _, after = event.rpartition(_COMPLETED_TYPE)
        return _INCOMPLETE + before[len(_COMPLETED) :] + _INCOMPLETE_TYPE + after

    def error_event(self, error: HatrackError, _request_id: str) -> bytes:
        """OpenAI's error event, numbered on from the last one."""
        return _error_event(error, self._last)


def _error_event(error: HatrackError, last: bytes) -> bytes:
    """OpenAI's error event: its documented fields, and the error object that makes its clients raise."""
    numbers = _SEQUENCE.findall(last)
    inner = error.payload()["error"]
    event = {
        "type": "error",
        "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
        "code": inner["code"],
        "message": inner["message"],
        "param": inner["param"],
        "error": inner,
    }
    return b"event: error\ndata: " + orjson.dumps(event) + END


class Responses(Dialect):
    """OpenAI's Responses API, without stored responses."""

    sampling_names: ClassVar[Mapping[str, str]] = MappingProxyType({"max_tokens": "max_output_tokens"})
    turns: ClassVar[str] = "input"
    _injector: ClassVar[PromptInjector] = RESPONSES_INJECTOR

    def _add_system_prompt(self, body: dict[str, Any], prompt: str) -> None:
        """As an item and not as `instructions`, which the answer would repeat to the caller."""
        items = body["input"]
        if "instructions" in body:
            return
        if isinstance(items, str):
            items = [{"type": "message", "role": "user", "content": items}]
        elif any(item.get("role") in ("system", "developer") for item in items):
            return
        body["input"] = [{"type": "message", "role": "system", "content": prompt}, *items]

    def take_grounding(self, body: dict[str, Any]) -> tuple[Any, FileSearch | None]:
        grounding = body.pop(FIELD, None)
        with_results = RESULTS in body.get("include", ())
        if with_results:
            body["include"] = [name for name in body["include"] if name != RESULTS]
        tools, choice = body.get("tools") or [], body.get("tool_choice")
        chosen = isinstance(choice, dict) and choice["type"] == FILE_SEARCH
        places = [place for place, tool in enumerate(tools) if tool["type"] == FILE_SEARCH]
        if not places and chosen:
            raise BadRequest(f"`tool_choice` names {FILE_SEARCH!r}, which is not in `tools`", param="tool_choice")
        if not places:
            return grounding, None
        _demand_one_search(places, grounding)
        if choice == "none":  # nor does the version's own grounding search; the engine repeats the tool in its answer
            return False, None
        place = places[0]
        rest = [*tools[:place], *tools[place + 1 :]]
        if rest:
            body["tools"] = rest
        else:
            del body["tools"]
        # the search is made before the model answers: that is the call which the choice may demand
        is_met = choice == "required" or chosen or not rest
        met = body.pop("tool_choice", None) if is_met else None
        return None, FileSearch(tools[place], place, met, with_results=with_results)

    def force_tools(self, body: dict[str, Any]) -> None:
        choice = body.get("tool_choice")
        tools = body.get("tools", ())
        if isinstance(choice, dict):
            forced = forced_tools((tool for tool in tools if tool["type"] == choice["type"]), choice["name"])
        elif choice == "required":
            forced = forced_tools(tools, None)
        else:
            return
        for tool in forced:
            if tool["type"] == "function":  # a custom tool takes a text, which vLLM has a schema of its own for
                make_strict(tool, "parameters")

    def gateway_fields(self, _body: Mapping[str, Any]) -> dict[str, Any]:
        return {"store": False}

    def error_event(self, error: HatrackError, _request_id: str, last: bytes) -> bytes:
        return _error_event(error, last)

    def relay(self, renamer: Renamer, _body: Mapping[str, Any]) -> EventRelay:
        return ResponsesRelay(renamer)

    def usage(self, answer: bytes, parsed: Mapping[str, Any] | None) -> TokenUsage | None:
        if parsed is None:
            return response_usage(answer)
        usage = parsed.get("usage")
        if not isinstance(usage, dict):
            return None
        details = usage.get("input_tokens_details")
        cached = count_in(details if isinstance(details, dict) else usage, "cached_tokens")
        return TokenUsage(count_in(usage, "input_tokens"), count_in(usage, "output_tokens"), cached)


def _demand_one_search(places: Sequence[int], grounding: Any) -> None:
    """Raise BadRequest if a request says more than once what is to be retrieved."""
    if len(places) > 1:
        raise BadRequest(
            f"`tools` has {len(places)} tools of type {FILE_SEARCH!r}; only one is allowed, with up to "
            f"{MAX_STORES_NAMED} `vector_store_ids`",
            param=f"tools.{places[1]}",
        )
    if grounding is not None:
        raise BadRequest(
            f"`{FIELD}` and the tool {FILE_SEARCH!r} both say what is to be retrieved; send one of them",
            param=f"tools.{places[0]}",
        )


RESPONSES = Responses()
