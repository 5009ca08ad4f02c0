"""One prober for each engine: an adapter is proven by the engine that will serve it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.agents import Agent, Bases, ServedBase
from service.registry.catalog import Catalog
from service.registry.mixed_batch import LoadedAdapters
from service.registry.proof import Prober


class Probers:
    """The probers of all engines.

    Args:
        catalog: Which adapters can serve, to be asked beside another.
        timeout_s: Longest time for one proof.
    """

    def __init__(self, bases: Bases, catalog: Catalog, *, timeout_s: float) -> None:
        self._bases = bases
        self._by_agent = {
            agent.name: Prober(
                agent.background,
                base.name,
                agent.restart,
                timeout_s=timeout_s,
                neighbours=LoadedAdapters(catalog, agent.client, base.name),
            )
            for base in bases
            for agent in base.agents
        }

    def of_agent(self, agent: Agent) -> Prober:
        """The prober of one engine."""
        return self._by_agent[agent.name]

    def on(self, base: ServedBase, digest: str | None) -> Prober:
        """The prober of the engine that serves this adapter on this base."""
        return self._by_agent[base.agent_for(digest).name]

    def of(self, fingerprint: Mapping[str, Any], digest: str | None) -> Prober:
        """The prober for a version, by its stored fingerprint."""
        return self.on(self._bases.serving(fingerprint) or self._bases.default, digest)
