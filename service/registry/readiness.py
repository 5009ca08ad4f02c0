"""Readiness of a version's prompt: what can be shown of system prompt, examples and grounding before they serve.

The engine renders the prompt under the base's chat template and counts its tokens, as it does for a request; no model
runs. Of a version without weights this is the whole proof, which says so by its ``kind``.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import PromptRefused, PromptTooLong
from service.access.caller import Caller, Scope
from service.engine.client import RenderedChat
from service.errors import EngineRefused
from service.grounding.config import GroundingSettings
from service.registry.catalog import VersionSettings

MIN_ROOM_TOKENS: Final = 256
"""What a version's prompt must leave of the context for question and answer, tokens; at most a quarter of it."""
QUESTION: Final = "?"
"""Stands for the request's own message while the prompt is rendered."""
ENGINE_KEY_ID: Final = "hatrack"

CheckStores = Callable[[GroundingSettings, Caller], Awaitable[None]]
"""Raises BadRequest or NotFound where a version's grounding names a provider or a store that its caller cannot use."""


async def no_stores(_settings: GroundingSettings, _caller: Caller) -> None:
    """For a registry without grounding: nothing is checked."""


class ChatRenderer(Protocol):
    """The engine, as far as prompts go; implemented by ``BackgroundEngine``."""

    async def render_chat(self, messages: Sequence[dict[str, str]]) -> RenderedChat:
        """The prompt that the base's chat template makes of these messages.

        Raises:
            EngineRefused: The template refuses them.
            HatrackError: The engine cannot be asked.
        """


class SettingsProof(BaseModel):
    """The proof of a version without weights: its prompt renders under the base's chat template, and fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    kind: Literal["settings"]
    prompt_tokens: int = Field(
        description="Of the system prompt and the examples, rendered with a question of one mark."
    )
    context_tokens: int = Field(description="What the engine's context holds.")
    warnings: tuple[str, ...]


class PromptChecker:
    """Checks prompts with the engine, one after another.

    Args:
        check_stores: Whether a version's grounding can be asked for.
    """

    def __init__(self, check_stores: CheckStores) -> None:
        self._check_stores = check_stores
        self._turn = asyncio.Lock()

    async def check_grounding(self, settings: VersionSettings, caller: Caller) -> None:
        """Raise BadRequest or NotFound where the caller may not ask for the version's grounding."""
        if settings.grounding is not None:
            await self._check_stores(settings.grounding, caller)

    async def prove(self, project: str, settings: VersionSettings, engine: ChatRenderer) -> SettingsProof:
        """Prove a version without weights: the project has its stores, and its prompt renders and fits.

        Args:
            engine: One of the version's base.

        Raises:
            PromptRefused, PromptTooLong: It does not.
            BadRequest, NotFound: A provider or a store of its grounding does not exist.
            HatrackError: The engine cannot be asked.
        """
        await self.check_grounding(settings, Caller(ENGINE_KEY_ID, project, frozenset({Scope.INFER})))
        rendered = await self._rendered(settings, engine)
        return SettingsProof(
            format=1,
            kind="settings",
            prompt_tokens=rendered.tokens,
            context_tokens=rendered.context,
            warnings=_warnings(settings, rendered),
        )

    async def check_examples(self, settings: VersionSettings, engine: ChatRenderer) -> tuple[str, ...]:
        """Check the prompt of a version with weights; returns warnings. ``engine``: one of its base.

        Raises:
            PromptRefused, PromptTooLong: It does not render, or does not fit.
            HatrackError: The engine cannot be asked.
        """
        return _warnings(settings, await self._rendered(settings, engine))

    async def _rendered(self, settings: VersionSettings, engine: ChatRenderer) -> RenderedChat:
        system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
        messages = [*system, *settings.example_messages, {"role": "user", "content": QUESTION}]
        try:
            async with self._turn:
                rendered = await engine.render_chat(messages)
        except EngineRefused as error:
            raise PromptRefused(
                f"The base's chat template cannot render the system prompt and examples: {error.reason}",
                param="settings",
            ) from error
        room, needed = rendered.context - rendered.tokens, _needed_room(settings, rendered.context)
        if room < needed:
            field, remedy = _what_to_shorten(settings, room, rendered.context)
            raise PromptTooLong(
                f"The system prompt and examples have {rendered.tokens} tokens of the base's context of "
                f"{rendered.context}; at least {needed} must be left for the question and the answer. {remedy}",
                param=f"settings.{field}",
            )
        return rendered


def _what_to_shorten(settings: VersionSettings, room: int, context: int) -> tuple[str, str]:
    """The setting that is at fault where the prompt leaves too little room, and what to do about it."""
    if room >= min(MIN_ROOM_TOKENS, context // 4):
        return "sampling.max_tokens", f"Set `settings.sampling.max_tokens` to {room} or less."
    if settings.examples:
        return "examples", "Send fewer or shorter examples."
    return "system_prompt", "Send a shorter system prompt."


def _needed_room(settings: VersionSettings, context: int) -> int:
    """Tokens that the prompt must leave free: MIN_ROOM_TOKENS, or the version's own limit on answers if it is more."""
    max_tokens = settings.sampling.get("max_tokens")
    return max(min(MIN_ROOM_TOKENS, context // 4), max_tokens if isinstance(max_tokens, int) else 0)


def _warnings(settings: VersionSettings, rendered: RenderedChat) -> tuple[str, ...]:
    warnings = []
    prompt = _folded(rendered.text)
    if settings.system_prompt and _folded(settings.system_prompt) not in prompt:
        warnings.append("The base's chat template does not show the system prompt as it was written.")
    altered = sum(_folded(message["content"]) not in prompt for message in settings.example_messages)
    if altered:
        warnings.append(
            f"The base's chat template does not show {altered} of the {len(settings.example_messages)} messages of the "
            "examples as they were written."
        )
    room = rendered.context - rendered.tokens - _needed_room(settings, rendered.context)
    if settings.grounding is not None and room < settings.grounding.max_passage_tokens:
        warnings.append(
            f"The prompt leaves room for {room} tokens of passages; `grounding.max_passage_tokens` is "
            f"{settings.grounding.max_passage_tokens}. Passages that do not fit are left out."
        )
    return tuple(warnings)


def _folded(text: str) -> str:
    """The text as a tokenizer may give it back: normal form, and white space left out, which templates trim."""
    return "".join(unicodedata.normalize("NFKC", text).split())
