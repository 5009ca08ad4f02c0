"""An engine in memory that gives log-probabilities as it is told to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.perplexity import PLAIN_TEXT
from service.engine.client import RenderedChat
from service.errors import AdapterNotFinite, EngineRefused, EngineUnavailable

BASE = "tiny"
TOKENS = 12


@dataclass
class MemoryEngine:
    """Under the base: fixed numbers plus ``base_shift``. Under a digest: those, moved by its effect (nats a token)."""

    effect: float = 0.5
    effects: dict[str, float] = field(default_factory=dict)
    not_finite: set[str] = field(default_factory=set)
    base_shift: float = 0.0
    base_noise: float = 0.0
    base_answers_nan: bool = False
    nan_spreads: bool = False
    down: bool = False
    asked: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    perplexity: float = 1.5
    perplexities: dict[str, float] = field(default_factory=dict)
    plain_tokens: int = 560
    plain_asked: list[str] = field(default_factory=list)
    long_not_finite: set[str] = field(default_factory=set)
    mixed_shifts: dict[str, float] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)
    capacity: int = 256
    loaded: list[str] = field(default_factory=list)
    context: int = 2048
    template_refuses: str | None = None
    template_hides: str | None = None
    rendered: list[list[dict[str, str]]] = field(default_factory=list)
    base: str = BASE
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def report(self, *, loaded: bool = False) -> dict[str, Any]:
        if self.down:
            raise EngineUnavailable("there is no engine")
        return {"loaded": sorted(self.loaded)} if loaded else {}

    def _load(self, digest: str) -> None:
        """The least recently used one falls out, as in vLLM."""
        self.loaded = [*(other for other in self.loaded if other != digest), digest][-self.capacity :]
        self._changed.set()

    async def until_loaded(self, *digests: str) -> None:
        """Return when all of them are in memory; fails where that takes too long."""
        async with asyncio.timeout(60):
            while not set(digests) <= set(self.loaded):
                self._changed.clear()
                await self._changed.wait()

    def require_ready(self) -> None:
        if self.down:
            raise EngineUnavailable("there is no engine")

    async def render_chat(self, messages: Sequence[Mapping[str, str]]) -> RenderedChat:
        """A template that puts each message's role before it; every word is a token."""
        if self.down:
            raise EngineUnavailable("there is no engine")
        if self.template_refuses is not None:
            raise EngineRefused("the engine returned status 400", reason=self.template_refuses)
        self.rendered.append([dict(message) for message in messages])
        hidden = self.template_hides
        text = "\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
        return RenderedChat(len(text.split()), self.context, text if hidden is None else text.replace(hidden, ""))

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        if tuple(texts) == (PLAIN_TEXT,):
            return [self._plain(model)]
        self.asked.append(model)
        if self.down:
            raise EngineUnavailable("there is no engine")
        if model == self.base:
            shift = math.nan if self.base_answers_nan else self.base_shift
            self.base_shift += self.base_noise
            return [self._row(index, shift) for index in range(len(texts))]
        if model in self.not_finite:
            self.base_answers_nan = self.base_answers_nan or self.nan_spreads
            raise AdapterNotFinite("logits are not finite")
        self._load(model)
        return [self._row(index, self.base_shift - self.effects.get(model, self.effect)) for index in range(len(texts))]

    def _plain(self, model: str) -> list[float]:
        """The long plain text: under a digest it is ``perplexities`` times as improbable as under the base."""
        self.plain_asked.append(model)
        if model in self.long_not_finite:
            return [-2.0] * 127 + [math.nan] * (self.plain_tokens - 128)
        ratio = 1.0 if model == self.base else self.perplexities.get(model, self.perplexity)
        return [-2.0 - math.log(ratio)] * (self.plain_tokens - 1)

    async def logprobs_together(
        self, adapter: str, neighbour: str | None, texts: Sequence[str]
    ) -> tuple[list[list[float]], list[list[float]], list[list[float]] | None]:
        asked = self.asked
        self.asked = []  # only what is asked alone counts
        try:
            models = [self.base, adapter, *([neighbour] if neighbour else [])]
            self.together.append(models)
            rows = []
            for model in models:
                shift = self.mixed_shifts.get(model, 0.0)
                rows.append([[value + shift for value in row] for row in await self.logprobs(model, texts)])
        finally:
            self.asked = asked
        return rows[0], rows[1], rows[2] if neighbour else None

    @staticmethod
    def _row(text: int, shift: float) -> list[float]:
        return [-2.0 - 0.1 * text - 0.01 * token + shift for token in range(TOKENS)]

    async def restart(self, reason: str) -> None:
        """What the supervisor does: a fresh engine, whose base is itself again."""
        self.restarts.append(reason)
        self.loaded = []
        self.base_answers_nan = False
        self.base_shift = 0.0
