"""Which engine a request goes to, and what a base demands of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.agents import Bases
from service.errors import EngineUnavailable
from service.inference.dialect import Route
from service.inference.dispatch import Dispatch, FinishedRequest
from service.inference.length import PromptLimit
from service.registry.catalog import Target
from service.structured.checker import StructuredOutputs
from service.telemetry.record import Record


@dataclass(frozen=True, slots=True)
class BaseLimits:
    """What depends on a request's base.

    Attributes:
        prompt_limit: The longest prompt.
        grammars: Checks structured outputs with the base's tokenizer; None: they go to the engine unchecked.
        context: Of its engines, tokens; None: unknown.
    """

    prompt_limit: PromptLimit
    grammars: StructuredOutputs | None
    context: int | None


class Dispatches:
    """Gives each request to the engine of its base that its adapter, or what it is counted as, belongs to.

    Args:
        by_agent: Each engine's dispatch, by the agent's name.
    """

    def __init__(self, bases: Bases, by_agent: Mapping[str, Dispatch]) -> None:
        self._bases = bases
        self._by_agent = by_agent

    def is_cold(self, route: Route, target: Target) -> bool:
        """As `Dispatch.is_cold`; the files are the same for all engines."""
        return self._of(target).is_cold(route, target)

    async def bring(self, target: Target, record: Record) -> None:
        """As `Dispatch.bring`."""
        await self._of(target).bring(target, record)

    async def answer(self, request: FinishedRequest) -> None:
        """As `Dispatch.answer`; what an engine that went away was not sent is given to the next one of its base.

        It keeps its deadline in the queue, and is offered to each engine once.
        """
        base, gone = self._bases.named(request.target.base), set[str]()
        while True:
            agent = base.agent_for(request.target.counted_as, gone)
            try:
                await self._by_agent[agent.name].answer(request)
                return
            except EngineUnavailable as error:
                gone.add(agent.name)
                if request.record.fallback_tokens is not None:
                    raise  # it was sent, and may have been answered
                if not base.is_ready(gone):
                    raise EngineUnavailable(
                        f"no engine of the base `{base.name}` takes requests now: {error.message}"
                    ) from error

    def _of(self, target: Target) -> Dispatch:
        agent = self._bases.named(target.base).agent_for(target.counted_as)
        return self._by_agent[agent.name]
