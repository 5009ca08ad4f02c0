"""OpenAI's chat format: one JSON object per line, `{"messages": [{"role", "content"}, …], "tools": […]}`.

An assistant message may have `"weight": 0`, which makes it context that is not trained on; and `tool_calls`, which
`tool` messages answer. Other formats (`adapters.dataset.formats`) are converted into this one, line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Literal, TypeGuard, get_args

from adapters.dataset.lines import LineRefused, require_text, show, unknown_keys
from adapters.dataset.tools import Tool, ToolCall, calls_text, read_tool_calls

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: Final = get_args(Role)
GROUP: Final = "group"
"""The key, in every format, that names what a line belongs to."""
MAX_GROUP_CHARS: Final = 200
FILTERS: Final = "filters"
"""The key, in every format, that gives the values of a version's required filters."""
MAX_FILTERS: Final = 8
MAX_FILTER_NAME_CHARS: Final = 64
MAX_FILTER_CHARS: Final = 512
FilterValue = str | float | bool
MAX_PASSAGE_CHARS: Final = 32_768
"""Longest passage of a vector store, and so the longest example in one (`Example.passage`)."""
_MESSAGE_KEYS: Final = ("role", "content", "weight")
_TOOL_KEYS: Final = (*_MESSAGE_KEYS, "tool_call_id", "name")
_CALLING_KEYS: Final = (*_MESSAGE_KEYS, "tool_calls")
_UNSUPPORTED: Final = {
    "function_call": "use `tool_calls`",
    "tool_calls": "only an assistant message has tool calls",
    "tool_call_id": "only a tool message answers a tool call",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `trained` is true for assistant messages that count in the loss.

    ``tool_calls`` are an assistant's, beside which ``content`` may be empty; ``tool_call_id`` and ``name`` a tool's.
    """

    role: Role
    content: str
    trained: bool
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All that the message says, its tool calls as JSON included."""
        return "\n".join(
            part for part in (self.content, calls_text(self.tool_calls) if self.tool_calls else "") if part
        )

    @property
    def answer(self) -> str:
        """What an answer is judged by: its tool calls as JSON if it has any, else its content."""
        return calls_text(self.tool_calls) if self.tool_calls else self.content


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that ends with an assistant message.

    Attributes:
        line: Its line in the file, from 1.
        group: What it belongs to according to its author, such as a customer or a ticket; None if nothing is named.
            Examples of one group stay on one side of a split, and count as one when a version is judged.
        tools: The functions that the assistant may call.
        rejected: In preference data the answer that is worse than the last message.
        filters: Attributes of documents and their values, such as `customer`, that an evaluation sends to versions
            with required filters.
    """

    line: int
    messages: tuple[Message, ...]
    group: str | None = None
    tools: tuple[Tool, ...] = ()
    rejected: Message | None = None
    filters: Mapping[str, FilterValue] = field(default_factory=dict)

    @property
    def judged(self) -> Message:
        """The answer that an evaluation compares with: the last message that is trained on, or else the last."""
        return self.messages[self._judged_at]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before `judged`."""
        return self.messages[: self._judged_at]

    @property
    def turns(self) -> tuple[Message, ...] | None:
        """The conversation up to `judged`, as it can be shown to a model before another one: without its system
        message. None if it has tool calls, or user and assistant do not take turns."""
        messages = [message for message in (*self.prompt, self.judged) if message.role != "system"]
        expected = ("user", "assistant") * (len(messages) // 2)
        if tuple(message.role for message in messages) != expected or any(message.tool_calls for message in messages):
            return None
        return tuple(messages)

    @property
    def passage(self) -> str | None:
        """`turns` as one text, which a vector store of examples has as a passage; None where they are."""
        return None if self.turns is None else "\n".join(f"{turn.role}: {turn.content}" for turn in self.turns)

    @property
    def uses_tools(self) -> bool:
        """Whether a chat template without tools could not render it."""
        return bool(self.tools) or any(message.tool_calls or message.role == "tool" for message in self.messages)

    @property
    def _judged_at(self) -> int:
        last = len(self.messages) - 1
        return next((at for at in range(last, -1, -1) if self.messages[at].trained), last)


def read_group(value: object) -> str | None:
    """The value of a line's `group`: a string or an integer. Raises LineRefused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise LineRefused(f"{GROUP} must be a string or an integer, such as a customer's or a ticket's number")
    text = str(value).strip()
    require_text(text, GROUP)
    if not text or len(text) > MAX_GROUP_CHARS:
        raise LineRefused(f"{GROUP} must have between 1 and {MAX_GROUP_CHARS} characters")
    return text


def read_filters(value: object) -> dict[str, FilterValue]:
    """The value of a line's `filters`: an object of strings, numbers and booleans. Raises LineRefused."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_FILTERS:
        raise LineRefused(f"{FILTERS} must be an object of at most {MAX_FILTERS} attributes")
    for name, attribute in value.items():
        if not 0 < len(name) <= MAX_FILTER_NAME_CHARS:
            raise LineRefused(f"{FILTERS}: a name must have between 1 and {MAX_FILTER_NAME_CHARS} characters")
        is_text = isinstance(attribute, str) and 0 < len(attribute) <= MAX_FILTER_CHARS
        if not is_text and not _is_number(attribute):
            raise LineRefused(
                f"{FILTERS}.{show(name)[1:-1]} must be a string of 1 to {MAX_FILTER_CHARS} characters, a number or a "
                "boolean"
            )
    require_text(value, FILTERS)
    return value


def _is_number(value: object) -> bool:
    """Whether it is a boolean, or a number that a double holds."""
    try:
        return isinstance(value, int | float) and isfinite(value)
    except OverflowError:  # an integer above 1.8e308
        return False


def read_belonging(line: Mapping[str, object]) -> tuple[str | None, dict[str, FilterValue]]:
    """The values of a line's `group` and `filters`.

    Raises:
        LineRefused: One is invalid; or `filters` have another `group`. In a store of examples both are the attribute
            `group`, and one would replace the other.
    """
    group, filters = read_group(line.get(GROUP)), read_filters(line.get(FILTERS))
    if group is not None and filters.get(GROUP, group) != group:
        raise LineRefused(
            f"{FILTERS}.{GROUP} is {show(filters[GROUP])} and {GROUP} is {show(group)}: in a store both are the "
            f"attribute `{GROUP}`; send one, the same text twice, or another name in {FILTERS}"
        )
    return group, filters


def read_messages(items: object, ignored: set[str], tools: Sequence[Tool] = ()) -> tuple[Message, ...]:
    """The messages of one example.

    Args:
        items: The value of `messages`.
        ignored: Gets the keys that are not used, such as ``messages[].name``.
        tools: The functions that the example declares.

    Raises:
        LineRefused: They are not a conversation that can be trained on.
    """
    messages = read_conversation(items, ignored, tools)
    if messages[-1].role != "assistant":
        raise LineRefused(f"the last message has role {messages[-1].role}; it must be assistant")
    if not any(message.trained for message in messages):
        raise LineRefused("every assistant message has weight 0, so there is nothing to train on")
    return messages


def read_conversation(
    items: object, ignored: set[str], tools: Sequence[Tool] = (), *, place: str = "messages"
) -> tuple[Message, ...]:
    """The same for messages that need not end with an answer; ``place`` is their key. Raises LineRefused."""
    if not isinstance(items, list) or not items:
        raise LineRefused(f"{place} must be a non-empty list")
    messages = tuple(_messages(items, ignored, place))
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise LineRefused(f"{place}[{index}]: only the first message may be a system message")
    _check_calls(messages, {tool["function"]["name"] for tool in tools}, place)
    return messages


def _check_calls(messages: Sequence[Message], declared: set[str], place: str) -> None:
    """Check that every call is of a declared tool and is answered, as a served conversation must be."""
    open_calls: list[ToolCall] = []
    for index, message in enumerate(messages):
        where = f"{place}[{index}]"
        if message.role == "tool":
            if not open_calls:
                raise LineRefused(f"{where}: a tool message must follow the tool calls that it answers")
            open_calls = _answer(open_calls, message, where)
            continue
        if open_calls:
            raise LineRefused(f"{where}: the call of {show(open_calls[0].name)} before it has no tool message")
        for call in message.tool_calls:
            if call.name not in declared:
                raise LineRefused(f"{where}.tool_calls calls {show(call.name)}, which is not in tools")
        open_calls = list(message.tool_calls)
    if open_calls and messages[-1].role == "tool":
        raise LineRefused(f"{place}: the call of {show(open_calls[0].name)} has no tool message")


def _answer(open_calls: Sequence[ToolCall], message: Message, where: str) -> list[ToolCall]:
    """The calls that are still open after a tool's message. Raises LineRefused if it answers none of them."""
    matching = [call for call in open_calls if call.id == message.tool_call_id]
    if not matching:
        ids = ", ".join(show(call.id) for call in open_calls)
        raise LineRefused(f"{where}.tool_call_id is {show(message.tool_call_id)}; the open calls have {ids}")
    return [call for call in open_calls if call is not matching[0]]


def _messages(items: list[Any], ignored: set[str], place: str) -> Iterator[Message]:
    for index, item in enumerate(items):
        where = f"{place}[{index}]"
        if not isinstance(item, dict):
            raise LineRefused(f"{where} is not an object")
        role = item.get("role")
        known = _CALLING_KEYS if role == "assistant" else _TOOL_KEYS if role == "tool" else _MESSAGE_KEYS
        unknown = unknown_keys(item, known, _UNSUPPORTED, f"{where}.")
        if unknown:
            ignored.update(f"{place}[].{key}" for key in unknown)
        yield _message(item, where)


def _message(value: dict[str, Any], where: str) -> Message:
    role, content, weight = value.get("role"), value.get("content"), value.get("weight", 1)
    if not _is_role(role):
        raise LineRefused(f"{where}.role is {show(role)}; must be one of {', '.join(_ROLES)}")
    calls = read_tool_calls(value.get("tool_calls"), f"{where}.tool_calls") if role == "assistant" else ()
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise LineRefused(f"{where}.content must be a string")
    if role not in ("system", "tool") and not content.strip() and not calls:
        raise LineRefused(f"{where}.content is empty")
    if not content.isprintable() and any(0xD800 <= ord(character) <= 0xDFFF for character in content):
        raise LineRefused(f"{where}.content contains an unpaired surrogate")
    if "weight" in value and role != "assistant":
        raise LineRefused(f"{where}.weight is allowed for assistant messages only")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise LineRefused(f"{where}.weight must be 0 or 1")
    trained = role == "assistant" and weight == 1
    if role == "tool":
        call_id, name = (_optional_text(value, key, where) for key in ("tool_call_id", "name"))
        return Message(role, content, trained, (), call_id, name)
    return Message(role, content, trained, calls)


def _optional_text(value: dict[str, Any], key: str, where: str) -> str | None:
    text = value.get(key)
    if text is not None and (not isinstance(text, str) or not text):
        raise LineRefused(f"{where}.{key} must be a non-empty string")
    require_text(text, f"{where}.{key}")
    return text


def _is_role(value: object) -> TypeGuard[Role]:
    return isinstance(value, str) and value in _ROLES
