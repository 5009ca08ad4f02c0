"""OpenAI's preference format: a prompt, and two answers of which one is better.

{"input": {"messages": [{"role", "content"}, …], "tools": […]},
 "preferred_output": [{"role": "assistant", "content": …}],
 "non_preferred_output": [{"role": "assistant", "content": …}]}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from adapters.dataset.chat import Message, read_conversation
from adapters.dataset.lines import LineRefused, unknown_keys
from adapters.dataset.tools import Tool, read_tools

KEYS: Final = ("input", "preferred_output", "non_preferred_output")
_INPUT_KEYS: Final = ("messages", "tools")


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversation that ends with the preferred answer, the other answer, and the tools of both."""

    messages: tuple[Message, ...]
    rejected: Message
    tools: tuple[Tool, ...]


def read_pair(value: dict[str, Any], ignored: set[str]) -> Pair:
    """The pair in a line. Raises LineRefused.

    Args:
        value: The line.
        ignored: Gets the keys that are not used.
    """
    prompt = value.get("input")
    if not isinstance(prompt, dict):
        raise LineRefused("input must be an object with `messages`")
    ignored.update(f"input.{key}" for key in unknown_keys(prompt, _INPUT_KEYS, {"functions": "use `tools`"}, "input."))
    tools = read_tools(prompt.get("tools"))
    messages = read_conversation(prompt.get("messages"), ignored, tools, place="input.messages")
    if messages[-1].role not in ("user", "tool"):
        raise LineRefused(f"the last message of input has role {messages[-1].role}; it must be user or tool")
    context = tuple(replace(message, trained=False) for message in messages)
    preferred, rejected = (_output(value, key, ignored, tools) for key in KEYS[1:])
    if preferred.text == rejected.text:
        raise LineRefused("preferred_output and non_preferred_output are the same, so there is nothing to prefer")
    return Pair((*context, preferred), rejected, tools)


def _output(value: dict[str, Any], key: str, ignored: set[str], tools: tuple[Tool, ...]) -> Message:
    items = value.get(key)
    if not isinstance(items, list) or len(items) != 1:
        raise LineRefused(f"{key} must be a list of one assistant message")
    (message,) = read_conversation(items, ignored, tools, place=key)
    if message.role != "assistant":
        raise LineRefused(f"{key}[0].role is {message.role}; it must be assistant")
    if not message.trained:
        raise LineRefused(f"{key}[0].weight is 0; both answers of a pair are trained on")
    return message
