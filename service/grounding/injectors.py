"""Inserts passages into requests: one injector for each API dialect, which names what cites them in the answer.

Passages go into the last user message, before its own text: the system prompt stays the version's or the caller's, and
text by third parties gets no more authority than a quotation in a question. Examples that are inserted as turns are
messages of their own: whoever writes the store then speaks for the user and the assistant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import orjson

from service.grounding.citing import Citer, MessagesCiter, ResponsesCiter
from service.grounding.provider import Turns
from service.grounding.template import FormattedPassages

_IMAGES: Final = frozenset({"image", "image_url", "input_image"})
_PROTOCOL_FIELDS: Final = frozenset({"type", "role"})
"""Fields whose strings belong to the protocol and do not appear in the prompt."""
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


class PromptInjector:
    """For chat completions; subclasses override what differs in their dialect. Stateless."""

    _system = ""
    """The field with a system prompt outside the messages; empty: there is none."""
    _text_part = "text"
    _prompt_fields: tuple[str, ...] = ("messages",)
    """The fields that make up the prompt, besides the tools."""
    citer: ClassVar[type[Citer]] = Citer
    """Adds the citations to the answers."""

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        messages: Sequence[Any] = body["messages"]
        return messages

    def conversation(self, body: Mapping[str, Any]) -> list[dict[str, str]]:
        """The request's messages as `role` and `content` (text); messages without text are left out."""
        messages = [(message.get("role"), text_of(message.get("content"))) for message in self._messages(body)]
        system_prompt = body.get(self._system) if self._system else None
        messages = [("system", text_of(system_prompt)), *messages]
        return [{"role": role, "content": text} for role, text in messages if isinstance(role, str) and text]

    def prompt(self, body: Mapping[str, Any]) -> Iterator[str]:
        """All texts that become part of the engine's prompt: messages, tool calls and results, and tool definitions;
        images are left out."""
        for name in self._prompt_fields:
            yield from strings(body.get(name))
        yield from (orjson.dumps(tool).decode() for tool in body.get("tools") or ())

    def question(self, body: Mapping[str, Any]) -> str:
        """The text of the last user message that has text; empty if there is none."""
        index = self._question_index(body)
        return "" if index is None else text_of(self._messages(body)[index]["content"])

    def _question_index(self, body: Mapping[str, Any]) -> int | None:
        messages = self._messages(body)
        for index in range(len(messages) - 1, -1, -1):
            if messages[index].get("role") == "user" and text_of(messages[index].get("content")):
                return index
        return None

    def inject(self, body: dict[str, Any], formatted: FormattedPassages) -> None:
        """Wrap the question in the passages, or put their turns before the conversation.

        Replaces the list in ``body``; the messages themselves are not changed.
        """
        if formatted.turns:
            self.add_turns(body, formatted.turns)
            return
        index = self._question_index(body)
        if index is None:
            return
        messages = list(self._messages(body))
        messages[index] = {
            **messages[index],
            "content": wrap_content(messages[index]["content"], formatted, self._text_part),
        }
        self._replace(body, messages)

    def add_turns(self, body: dict[str, Any], turns: Turns) -> None:
        """Put turns before the conversation, after its system messages; replaces the list in ``body``.

        Args:
            turns: They are not changed.
        """
        messages = self._messages(body)
        roles = (message.get("role") for message in messages)
        after = next((at for at, role in enumerate(roles) if role not in ("system", "developer")), len(messages))
        self._replace(body, [*messages[:after], *map(self._message, turns), *messages[after:]])

    def _message(self, turn: Mapping[str, str]) -> Mapping[str, str]:
        return turn

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["messages"] = messages


class ResponsesInjector(PromptInjector):
    """For `/v1/responses`."""

    citer = ResponsesCiter
    _text_part = "input_text"
    _prompt_fields = ("instructions", "input")
    _system = "instructions"

    def _messages(self, body: Mapping[str, Any]) -> Sequence[Any]:
        items = body["input"]
        return [{"type": "message", "role": "user", "content": items}] if isinstance(items, str) else items

    def _message(self, turn: Mapping[str, str]) -> Mapping[str, str]:
        return {"type": "message", **turn}

    def _replace(self, body: dict[str, Any], messages: list[Any]) -> None:
        body["input"] = messages


class MessagesInjector(PromptInjector):
    """For `/v1/messages`."""

    citer = MessagesCiter
    _prompt_fields = ("system", "messages")
    _system = "system"


CHAT_INJECTOR: Final = PromptInjector()
RESPONSES_INJECTOR: Final = ResponsesInjector()
MESSAGES_INJECTOR: Final = MessagesInjector()


def text_of(content: Any) -> str:
    """The text of a message's content: the string itself, or the text parts joined by newlines."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if part.get("type") in _TEXT_PARTS)


def strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value that may appear in a prompt; a tool call yields its JSON."""
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
    """A message's content between the formatted texts; non-text parts keep their positions."""
    if isinstance(content, str):
        return f"{formatted.before}{content}{formatted.after}"
    parts = [{"type": part_type, "text": formatted.before}, *content]
    return [*parts, {"type": part_type, "text": formatted.after}] if formatted.after else parts
