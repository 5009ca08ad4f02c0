"""A teacher's HTTP answers, read the same way by everybody who asks one over OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from adapters.labelling.asking import PromptRefused, Reply, Teacher, TeacherBusy
from adapters.labelling.prompts import Prompt

BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed later."""
ABOUT_THE_PROMPT: Final = frozenset({413, 422, 451})
PROMPT_PARAMS: Final = ("messages", "max_tokens", "grounding.filters")
"""Fields of which a 400 is about this prompt: its content, its length, its customer."""
FINAL_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Of a 429: not a matter of waiting a minute."""
SHOWN_CHARS: Final = 300
SERVED_BY: Final = "x-hatrack-adapter"


def request_of(teacher: Teacher, prompt: Prompt) -> tuple[str, dict[str, Any]]:
    """The gateway's path, and the body, that ask a teacher once."""
    body: dict[str, Any] = {"messages": teacher.messages(prompt), "max_tokens": teacher.max_tokens}
    if teacher.temperature is not None:
        body["temperature"] = teacher.temperature
    if teacher.outside:
        return f"/v1/teachers/{quote(teacher.name, safe='')}", body
    body["model"] = teacher.name
    if prompt.filters:
        conditions = [{"type": "eq", "key": name, "value": value} for name, value in prompt.filters.items()]
        body["grounding"] = {"filters": {"type": "and", "filters": conditions}}
    return "/v1/chat/completions", body


def read_completion(value: Any, *, served_by: str | None, seconds: float, max_tokens: int) -> Reply:
    """The reply in a chat completion. Raises ValueError if ``value`` is none."""
    try:
        choice = value["choices"][0]
        message, usage = choice["message"], value.get("usage") or {}
        refusal = message.get("refusal")
        if message.get("tool_calls") and not message.get("content"):
            refusal = "the teacher called a tool instead of answering"
        return Reply(
            text=str(message.get("content") or ""),
            finish_reason=choice.get("finish_reason"),
            refusal=None if refusal is None else str(refusal)[:SHOWN_CHARS],
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            served_by=served_by or value.get("model"),
            seconds=round(seconds, 3),
            max_tokens=max_tokens,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("the answer is not a chat completion") from error


def _count(value: Any) -> int | None:
    """A number of tokens; None if the endpoint did not state it."""
    return None if value is None else int(value)


def raise_if_for_later_or_for_the_prompt(status: int, error: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Raise what an unsuccessful answer means for the labelling; return if it means its end.

    Args:
        status: The HTTP status.
        error: The body's `error`.
        headers: The answer's headers, names in lower case or case-insensitive.

    Raises:
        TeacherBusy: The same request may succeed later.
        PromptRefused: This prompt is refused; others may not be.
    """
    code, message = str(error.get("code") or error.get("type") or status), str(error.get("message") or "")
    shown = " ".join(message.split())[:SHOWN_CHARS]
    if status in BUSY and code not in FINAL_CODES and headers.get("x-should-retry") != "false":
        raise TeacherBusy(f"{status} {code}: {shown}", retry_after_s(headers.get("retry-after")))
    param = error.get("param")
    about_prompt = status == 400 and (param is None or str(param).startswith(PROMPT_PARAMS))
    if status in ABOUT_THE_PROMPT or about_prompt:
        raise PromptRefused(code, shown)


def retry_after_s(value: str | None) -> float | None:
    """A `Retry-After` header in seconds; None if it is missing or a date."""
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
