"""The prompts that a teacher is to answer: JSONL with `messages` or `prompt`, or a text file with one on each line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adapters.dataset.chat import FilterValue, read_belonging, read_conversation
from adapters.dataset.formats import split_lines
from adapters.dataset.lines import MAX_PROBLEMS, LineRefused, Problem, decode_line, describe_problems

MESSAGES: Final = "messages"
PROMPT: Final = "prompt"


class PromptsInvalid(Exception):
    """Lines that are no prompts; the message lists them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(describe_problems(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with what the teacher is to answer.

    Attributes:
        line: Its line in the file, from 1.
        messages: As a request sends them: `role` and `content`.
        group, filters: See `adapters.dataset.chat.Example`; they go into the training file as they are.
    """

    line: int
    messages: tuple[Mapping[str, Any], ...]
    group: str | None = None
    filters: Mapping[str, FilterValue] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for equal questions: SHA-256 of messages and filters, hex."""
        content = json.dumps([list(self.messages), dict(self.filters)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a file, each once. ``repeated``: lines that repeat an earlier one; ``answers``: lines whose own
    answer was left out."""

    prompts: tuple[Prompt, ...]
    repeated: int = 0
    answers: int = 0


def read_prompts(content: bytes, *, as_text: bool = False) -> Prompts:
    """The prompts in a file, UTF-8.

    A conversation that ends with an assistant's message is asked without it. Keys other than `group` and `filters` are
    ignored.

    Args:
        as_text: Each line that is not empty is a prompt, not JSON.

    Raises:
        PromptsInvalid: Lists every invalid line; or there is no prompt at all.
    """
    prompts: dict[str, Prompt] = {}
    problems: list[Problem] = []
    repeated = answers = 0
    for number, line in enumerate(split_lines(content), 1):
        if as_text and not line.strip():
            continue
        try:
            prompt, answered = _text_prompt(line, number) if as_text else _json_prompt(line, number)
        except LineRefused as refusal:
            problems.append(Problem(number, refusal.reason))
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        answers += answered
        repeated += prompts.setdefault(prompt.digest, prompt) is not prompt
    if problems:
        raise PromptsInvalid(problems)
    if not prompts:
        raise PromptsInvalid([Problem(1, "the file has no prompts")])
    return Prompts(tuple(prompts.values()), repeated, answers)


def _text_prompt(line: bytes, number: int) -> tuple[Prompt, bool]:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise LineRefused(f"not UTF-8 at byte {error.start + 1}") from error
    return Prompt(number, ({"role": "user", "content": text},)), False


def _json_prompt(line: bytes, number: int) -> tuple[Prompt, bool]:
    """The prompt, and whether the line had an answer that is left out. Raises LineRefused."""
    value = decode_line(line)
    if not isinstance(value, dict) or (MESSAGES in value) == (PROMPT in value):
        raise LineRefused(f"must be an object with either `{MESSAGES}` or `{PROMPT}`")
    items = value[MESSAGES] if MESSAGES in value else [{"role": "user", "content": value[PROMPT]}]
    conversation = list(read_conversation(items, set()))
    answered = conversation[-1].role == "assistant"
    if answered:
        conversation.pop()
    if not conversation or conversation[-1].role != "user":
        raise LineRefused("the last message before the answer must be a user's")
    if any(message.tool_calls or message.role == "tool" for message in conversation):
        raise LineRefused("tool calls cannot be labelled")
    messages = tuple({"role": message.role, "content": message.content} for message in conversation)
    return Prompt(number, messages, *read_belonging(value)), answered
