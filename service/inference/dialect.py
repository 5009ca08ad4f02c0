"""Routes, and their API dialects: how a family of routes formats streams, usage and errors, and applies settings.

The base class covers OpenAI's completions, embeddings and tokenizer routes; subclasses override what differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from service.errors import HatrackError
from service.grounding.fields import FIELD
from service.grounding.file_search import FileSearch
from service.grounding.injectors import CHAT_INJECTOR, PromptInjector
from service.http.stream import TokenUsage
from service.inference.completions import ChatRelay
from service.inference.fields import SAMPLING_FIELDS, Table
from service.inference.relay import EventRelay, Renamer, completions_error_event, find_usage, usage_of
from service.inference.tools import forced_tools, make_strict
from service.registry.catalog import VersionSettings


class Dialect:
    """OpenAI's completions. Stateless."""

    id_header: ClassVar[bytes | None] = None
    """An additional response header for the request's id."""
    sampling_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Sampling defaults that have another name in this dialect's requests."""
    turns: ClassVar[str] = "messages"
    """The field with the conversation, before which a version's examples stand. Text completions have none."""
    _injector: ClassVar[PromptInjector] = CHAT_INJECTOR

    def error_body(self, error: HatrackError, _request_id: str) -> bytes:
        """The body of an error's answer, JSON."""
        return error.body()

    def error_event(self, error: HatrackError, _request_id: str, _last: bytes) -> bytes:
        """The event that reports an error in a stream; ``_last``: the events before it."""
        return completions_error_event(error)

    def apply_settings(self, body: dict[str, Any], settings: VersionSettings, table: Table, *, generates: bool) -> None:
        """Add a version's system prompt and sampling defaults where the request has none of its own.

        A default that the route has no field for is left out.

        Args:
            body: The checked request; changed in place.
            table: The route's fields.
            generates: Sampling defaults apply.
        """
        if settings.system_prompt is not None:
            self._add_system_prompt(body, settings.system_prompt)
        if not generates:
            return
        for name, value in settings.sampling.items():
            field = self.sampling_names.get(name, name)
            if name not in SAMPLING_FIELDS or field in body or field not in table or value is None:
                continue
            if name == "max_tokens" and "max_completion_tokens" in body:
                continue
            body[field] = value

    def _add_system_prompt(self, body: dict[str, Any], prompt: str) -> None:
        """Prepend the system prompt. Text completions have no field for one and get none."""
        messages = body.get("messages")
        if messages is not None and not any(message["role"] in ("system", "developer") for message in messages):
            body["messages"] = [{"role": "system", "content": prompt}, *messages]

    def add_examples(self, body: dict[str, Any], examples: Sequence[dict[str, str]]) -> None:
        """Put a version's examples before the conversation, after its system messages; changes ``body`` in place.

        Args:
            body: The checked request, which has a conversation.
            examples: Messages of a user and an assistant in turn; they are not changed.
        """
        self._injector.add_turns(body, examples)

    def take_grounding(self, body: dict[str, Any]) -> tuple[Any, FileSearch | None]:
        """Take out of the body what it says about grounding: the field, or the tool that says the same.

        Raises:
            BadRequest: It says so twice.
        """
        return body.pop(FIELD, None), None

    def force_tools(self, body: dict[str, Any]) -> None:
        """Make forced tool calls follow the function's schema; changes the request's tools in place.

        Raises:
            BadRequest: The forced function is not in `tools`.
        """
        choice = body.get("tool_choice")
        if choice == "required" or isinstance(choice, dict):
            functions = (tool["function"] for tool in body.get("tools", ()))
            for function in forced_tools(functions, choice["function"]["name"] if isinstance(choice, dict) else None):
                make_strict(function, "parameters")

    def gateway_fields(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that the gateway sets regardless of the request."""
        if not body.get("stream"):
            return {}
        options = body.get("stream_options") or {}
        continuous = bool(options.get("include_usage") and options.get("continuous_usage_stats"))
        return {"stream_options": {"include_usage": True, "continuous_usage_stats": continuous}}

    def relay(self, renamer: Renamer, body: Mapping[str, Any]) -> EventRelay:
        """Create a relay for one stream."""
        options = body.get("stream_options") or {}
        return ChatRelay(renamer, show_usage=bool(options.get("include_usage")))

    def usage(self, answer: bytes, parsed: Mapping[str, Any] | None) -> TokenUsage | None:
        """The usage in a whole answer; None: it has none.

        Args:
            parsed: The answer's object; None: it was not parsed, and its bytes are searched.
        """
        return find_usage(answer) if parsed is None else usage_of(parsed)

    def answer(self, answer: bytes, renamer: Renamer) -> bytes:
        """Convert a whole answer for the client."""
        return renamer.rename_answer(answer)


OPENAI = Dialect()


@dataclass(frozen=True, slots=True)
class Route:
    """One inference route: its path at the engine, its fields and its dialect."""

    engine_path: str
    table: Table
    required: tuple[str, ...]
    generates: bool = False
    """Sampling defaults apply, and it can stream."""
    salted: bool = False
    """The engine's route takes a `cache_salt`: the model itself runs, and counts its tokens."""
    renders: bool = False
    """The answer is the finished request itself; the engine is not asked."""
    count: re.Pattern[bytes] | None = None
    """For routes that run no model: finds the token count in the answer; None: the estimate is used."""
    member: str | None = None
    """What every whole answer of the engine has; None: nothing in particular."""
    dialect: Dialect = OPENAI
    injector: PromptInjector | None = None
    """Inserts passages and citations; None: the route does not support grounding."""
