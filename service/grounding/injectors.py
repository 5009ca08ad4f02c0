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
from service.grounding.template import FormattedPassages
from service.http.stream import END, Relay, Usage

_IMAGES: Final = frozenset({"image", "image_url", "input_image"})
_PROTOCOL_FIELDS: Final = frozenset({"type", "role"})
"""Members whose strings are of the protocol: a chat template has its own words for them."""
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


class PromptInjector:
    """Chat completions; the other dialects change what differs. Holds nothing: one instance serves every request."""

    _system = ""
    """A field that holds the system prompt beside the messages."""
    _text_part = "text"
    _prompt_fields: tuple[str, ...] = ("messages",)
    """The fields that the prompt is made of, beside the tools."""
    _marker = b'"finish_reason":"'
    """Stands in the events of a stream that get the citations, and in no other."""

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        messages: Sequence[Any] = body["messages"]
        return messages

    def conversation(self, body: Mapping[str, Any]) -> list[dict[str, str]]:
        """The request's messages as role and text; those without text are left out."""
        messages = [(message.get("role"), text_of(message.get("content"))) for message in self._messages(body)]
        system_prompt = body.get(self._system) if self._system else None
        messages = [("system", text_of(system_prompt)), *messages]
        return [{"role": role, "content": text} for role, text in messages if isinstance(role, str) and text]

    def prompt(self, body: Mapping[str, Any]) -> Iterator[str]:
        """All text that the engine makes its prompt of, piece by piece: what was said, what tools were asked and what
        they answered, and the tools themselves. Pictures are no text."""
        for name in self._prompt_fields:
            yield from strings(body.get(name))
        yield from (orjson.dumps(tool).decode() for tool in body.get("tools") or ())

    def question(self, body: Mapping[str, Any]) -> str:
        """The text of the user's last message that has any; empty where there is none."""
        index = self._question_index(body)
        return "" if index is None else text_of(self._messages(body)[index]["content"])

    def _question_index(self, body: Mapping[str, Any]) -> int | None:
        messages = self._messages(body)
        for index in range(len(messages) - 1, -1, -1):
            if messages[index].get("role") == "user" and text_of(messages[index].get("content")):
                return index
        return None

    def inject(self, body: dict[str, Any], formatted: FormattedPassages) -> None:
        """Put the passages around the question; changes ``body``, not its messages."""
        index = self._question_index(body)
        if index is None:
            return
        messages = list(self._messages(body))
        messages[index] = {
            **messages[index],
            "content": wrap_content(messages[index]["content"], formatted, self._text_part),
        }
        self._replace(body, messages)

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["messages"] = messages

    def cite(self, answer: bytes, citations: bytes) -> bytes:
        """A whole answer with ``citations`` (a JSON array) at its top."""
        return add_citations(answer, citations)

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        """An event, without its end, with the citations where it is the one that gets them."""
        return add_citations(event, citations) if self._marker in event else event


class ResponsesInjector(PromptInjector):
    """`/v1/responses`: the citations stand in the response object, which comes once more in a stream's last event."""

    _marker = b'"response":{'
    _text_part = "input_text"
    _prompt_fields = ("instructions", "input")
    _system = "instructions"
    _last = (b"event: response.completed\n", b"event: response.incomplete\n")

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        items = body["input"]
        return [{"type": "message", "role": "user", "content": items}] if isinstance(items, str) else items

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["input"] = messages

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        """Inside the last event's response object."""
        if not event.startswith(self._last):
            return event
        before, marker, after = event.partition(self._marker)
        return before + marker + b'"citations":' + citations + b"," + after if marker else event


class MessagesInjector(PromptInjector):
    """`/v1/messages`: in a stream, the citations stand in `message_delta`, beside the reason why it stopped."""

    _prompt_fields = ("system", "messages")
    _system = "system"

    def cite_event(self, event: bytes, citations: bytes) -> bytes:
        return add_citations(event, citations) if event.startswith(b"event: message_delta\n") else event


CHAT_INJECTOR: Final = PromptInjector()
RESPONSES_INJECTOR: Final = ResponsesInjector()
MESSAGES_INJECTOR: Final = MessagesInjector()


class CitationRelay:
    """A relay whose last event with content carries the citations; everything else is the inner relay's."""

    __slots__ = ("_citations", "_injector", "_inner")

    def __init__(self, inner: Relay, injector: PromptInjector, citations: bytes) -> None:
        self._inner = inner
        self._injector = injector
        self._citations = citations

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that the client may have now."""
        block = self._inner.feed(chunk)
        if not block:
            return block
        cite, citations = self._injector.cite_event, self._citations
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

    def error_event(self, error: HatrackError, request_id: str) -> bytes:
        """The event that tells the client of an error."""
        return self._inner.error_event(error, request_id)


def text_of(content: Any) -> str:
    """The text in a message's content: a string, or the text parts of a list, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if part.get("type") in _TEXT_PARTS)


def strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value that may stand in a prompt; what a tool is asked with, as JSON."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict) and item.get("type") == "tool_use":
            yield orjson.dumps(item).decode()
        elif isinstance(item, dict) and not (isinstance(item.get("type"), str) and item["type"] in _IMAGES):
            pending.extend(inner for name, inner in item.items() if name not in _PROTOCOL_FIELDS)


def wrap_content(content: Any, formatted: FormattedPassages, part_type: str) -> Any:
    """A message's content with text before and behind it; parts that are no text stay where they are."""
    if isinstance(content, str):
        return f"{formatted.before}{content}{formatted.after}"
    parts = [{"type": part_type, "text": formatted.before}, *content]
    return [*parts, {"type": part_type, "text": formatted.after}] if formatted.after else parts


def add_citations(data: bytes, citations: bytes) -> bytes:
    """A JSON object's text with the member `citations` at its end."""
    before, brace, after = data.rpartition(b"}")
    return before + b',"citations":' + citations + brace + after
