"""Where passages stand in a request, and where citations stand in its answer: one place for each dialect.

Passages go into the last message of the user, in front of what it says: the system prompt stays the version's or the
caller's, and the text that other people wrote has no more authority than a quotation in a question. Answers are not
parsed: citations are put in at a mark that cannot stand inside a JSON string, as in `service.inference.relay`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from service.errors import HatrackError
from service.grounding.template import Quoted
from service.http.stream import END, Relay, Usage

_IMAGES: Final = frozenset({"image", "image_url", "input_image"})
_NOT_SAID: Final = frozenset({"type", "role"})
"""Members whose strings are of the protocol: a chat template has its own words for them."""
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


class Place:
    """Chat completions; the other dialects change what differs. Holds nothing: one instance serves every request."""

    _system = ""
    """A field that holds the system prompt beside the messages."""
    _text_part = "text"
    _said: tuple[str, ...] = ("messages",)
    """The fields that the prompt is made of, beside the tools."""
    _mark = b'"finish_reason":"'
    """Stands in the events of a stream that get the citations, and in no other."""

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        found: Sequence[Any] = body["messages"]
        return found

    def conversation(self, body: Mapping[str, Any]) -> list[dict[str, str]]:
        """The request's messages as role and text; those without text are left out."""
        said = [(message.get("role"), text_of(message.get("content"))) for message in self._messages(body)]
        above = body.get(self._system) if self._system else None
        said = [("system", text_of(above)), *said]
        return [{"role": role, "content": text} for role, text in said if isinstance(role, str) and text]

    def prompt(self, body: Mapping[str, Any]) -> Iterator[str]:
        """All text that the engine makes its prompt of, piece by piece: what was said, what tools were asked and what
        they answered, and the tools themselves. Pictures are no text."""
        for name in self._said:
            yield from strings(body.get(name))
        yield from (orjson.dumps(tool).decode() for tool in body.get("tools") or ())

    def question(self, body: Mapping[str, Any]) -> str:
        """The text of the user's last message that has any; empty where there is none."""
        at = self._asked(body)
        return "" if at is None else text_of(self._messages(body)[at]["content"])

    def _asked(self, body: Mapping[str, Any]) -> int | None:
        messages = self._messages(body)
        for at in range(len(messages) - 1, -1, -1):
            if messages[at].get("role") == "user" and text_of(messages[at].get("content")):
                return at
        return None

    def put(self, body: dict[str, Any], quoted: Quoted) -> None:
        """Put the passages around the question; changes ``body``, not its messages."""
        at = self._asked(body)
        if at is None:
            return
        messages = list(self._messages(body))
        messages[at] = {**messages[at], "content": around(messages[at]["content"], quoted, self._text_part)}
        self._replace(body, messages)

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["messages"] = messages

    def cite(self, answer: bytes, citations: bytes) -> bytes:
        """A whole answer with ``citations`` (a JSON array) at its top."""
        return at_end(answer, citations)

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        """An event, without its end, with the citations where it is the one that gets them."""
        return at_end(event, citations) if self._mark in event else event


class ResponsesPlace(Place):
    """`/v1/responses`: the citations stand in the response object, which comes once more in a stream's last event."""

    _mark = b'"response":{'
    _text_part = "input_text"
    _said = ("instructions", "input")
    _system = "instructions"
    _last = (b"event: response.completed\n", b"event: response.incomplete\n")

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        given = body["input"]
        return [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["input"] = messages

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        """Inside the last event's response object."""
        if not event.startswith(self._last):
            return event
        before, mark, after = event.partition(self._mark)
        return before + mark + b'"citations":' + citations + b"," + after if mark else event


class MessagesPlace(Place):
    """`/v1/messages`: in a stream, the citations stand in `message_delta`, beside the reason why it stopped."""

    _said = ("system", "messages")
    _system = "system"

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        return at_end(event, citations) if event.startswith(b"event: message_delta\n") else event


CHAT: Final = Place()
RESPONSES_PLACE: Final = ResponsesPlace()
MESSAGES_PLACE: Final = MessagesPlace()


class CitingRelay:
    """A relay whose last event with content carries the citations; everything else is the inner relay's."""

    __slots__ = ("_citations", "_inner", "_place")

    def __init__(self, inner: Relay, place: Place, citations: bytes) -> None:
        self._inner = inner
        self._place = place
        self._citations = citations

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that the client may have now."""
        block = self._inner.feed(chunk)
        if not block:
            return block
        cite, citations = self._place.cite_event, self._citations
        return b"".join(cite(event, citations) + END for event in block.split(END)[:-1])

    @property
    def done(self) -> bool:
        """The engine has sent its last event."""
        return self._inner.done

    @property
    def error(self) -> bytes | None:
        """The engine's error event."""
        return self._inner.error

    def counted(self) -> Usage | None:
        """The engine's count."""
        return self._inner.counted()

    def last_words(self, error: HatrackError, request_id: str) -> bytes:
        """The event that tells the client of an error."""
        return self._inner.last_words(error, request_id)


def text_of(content: Any) -> str:
    """The text in a message's content: a string, or the text parts of a list, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if part.get("type") in _TEXT_PARTS)


def strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value that may stand in a prompt; what a tool is asked with, as JSON."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            left.extend(one)
        elif isinstance(one, dict) and one.get("type") == "tool_use":
            yield orjson.dumps(one).decode()
        elif isinstance(one, dict) and not (isinstance(one.get("type"), str) and one["type"] in _IMAGES):
            left.extend(inner for name, inner in one.items() if name not in _NOT_SAID)


def around(content: Any, quoted: Quoted, kind: str) -> Any:
    """A message's content with text before and behind it; parts that are no text stay where they are."""
    if isinstance(content, str):
        return f"{quoted.before}{content}{quoted.after}"
    parts = [{"type": kind, "text": quoted.before}, *content]
    return [*parts, {"type": kind, "text": quoted.after}] if quoted.after else parts


def at_end(data: bytes, citations: bytes) -> bytes:
    """A JSON object's text with the member `citations` at its end."""
    before, brace, after = data.rpartition(b"}")
    return before + b',"citations":' + citations + brace + after
