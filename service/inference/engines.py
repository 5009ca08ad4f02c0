"""Which engine a request goes to, and what a base demands of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.agents import Bases
from service.inference.dispatch import Dispatch, FinishedRequest
from service.inference.length import PromptLimit
from service.structured.checker import StructuredOutputs


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

    async def answer(self, request: FinishedRequest) -> None:
        """As `Dispatch.answer`."""
        target = request.target
        agent = self._bases.named(target.base).agent_for(target.counted_as)
        await self._by_agent[agent.name].answer(request)
