"""The bases that a gateway serves, and the engines of each: which engine a request goes to.

What belongs to one engine (its supervisor, admission, slots, what it has loaded) is its *agent*; keys, catalog, limits
and usage belong to the gateway. A gateway with one engine has one agent, and chooses nothing.

Within a base's group an adapter is loaded by the engine that its digest is hashed to (rendezvous hashing, Thaler and
Ravishankar 1998): each adapter takes a slot of one engine, and an engine that goes away moves only its own adapters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from adapters.base import BaseDescription, Fingerprint
from service.admission.background import BackgroundEngine
from service.config import Settings
from service.engine.client import EngineClient
from service.errors import BadRequest, SettingsError

MAX_REMEMBERED: Final = 65_536
"""Keys whose order of engines is remembered, a base: some 10 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Agent:
    """One engine, as the registry and the data path use it.

    Attributes:
        name: Unique in the gateway; stable, for adapters are hashed to it.
        settings: The gateway's, with what is this engine's own.
        client: Asks the engine without waiting for a turn: what it has loaded.
        background: Asks it in a lower class than callers.
        restart: Called with a reason when its answers are poisoned.
        is_ready: Whether it accepts requests now.
        load: Requests that are in it or queued for it.
    """

    name: str
    settings: Settings
    client: EngineClient
    background: BackgroundEngine
    restart: Callable[[str], Awaitable[None]]
    is_ready: Callable[[], bool] = lambda: True
    load: Callable[[], int] = lambda: 0


class ServedBase:
    """A base model and the engines that serve it.

    Args:
        description: Its identity, the same in all engines.
        created_at: Unix seconds, for `/v1/models`.
        agents: At least one.
    """

    def __init__(self, description: BaseDescription, created_at: int, agents: Sequence[Agent]) -> None:
        self.description = description
        self.created_at = created_at
        self.agents = tuple(agents)
        self._only = self.agents[0] if len(self.agents) == 1 else None
        self._order = lru_cache(MAX_REMEMBERED)(self._ordered)

    @property
    def name(self) -> str:
        """The name that clients use for it."""
        return self.description.served_name

    @property
    def fingerprint(self) -> Fingerprint:
        """Its identity, and that of how it is served."""
        return self.description.fingerprint

    @property
    def settings(self) -> Settings:
        """The settings of its first engine: where its checkpoint is, its context."""
        return self.agents[0].settings

    @property
    def slots(self) -> int:
        """LoRA slots of the engine that has the fewest."""
        return min(agent.settings.engine_slots for agent in self.agents)

    def agent_for(self, key: str | None) -> Agent:
        """The engine for an adapter's digest, or for what else keeps to one engine; None: the least loaded.

        An engine that is not ready is passed over for as long; where none is, the first choice says why.
        """
        if self._only is not None:
            return self._only
        ready = [agent for agent in self.agents if agent.is_ready()]
        if key is None:
            return min(ready or self.agents, key=lambda agent: agent.load())
        order = self._order(key)
        return next((agent for agent in order if agent in ready), order[0])

    def agent_instead(self, key: str | None, tried: Collection[Agent]) -> Agent | None:
        """The next engine for what the ``tried`` ones could not take; None: no other is ready."""
        ready = [agent for agent in self.agents if agent not in tried and agent.is_ready()]
        if key is None:
            return min(ready, key=lambda agent: agent.load(), default=None)
        return next((agent for agent in self._order(key) if agent in ready), None)

    def _ordered(self, key: str) -> tuple[Agent, ...]:
        def score(agent: Agent) -> bytes:
            return blake2b(f"{agent.name}\0{key}".encode(), digest_size=8).digest()

        return tuple(sorted(self.agents, key=score, reverse=True))


class Bases:
    """All bases of a gateway, the default first.

    Raises:
        SettingsError: Two of them are one and the same model.
    """

    def __init__(self, bases: Sequence[ServedBase]) -> None:
        self.default = bases[0]
        self.by_name: Mapping[str, ServedBase] = {base.name: base for base in bases}
        for number, base in enumerate(bases):
            for other in bases[:number]:
                if base.fingerprint.servable_with(other.fingerprint):
                    raise SettingsError(
                        f"HATRACK_ENGINES: `{other.name}` and `{base.name}` are the same model under two names; give "
                        "their engines the same `base` and `base_name`"
                    )

    def __iter__(self) -> Iterator[ServedBase]:
        return iter(self.by_name.values())

    @property
    def agents(self) -> list[Agent]:
        """Every engine of every base."""
        return [agent for base in self for agent in base.agents]

    @property
    def names(self) -> tuple[str, ...]:
        """The served names, the default first."""
        return tuple(self.by_name)

    def named(self, name: str) -> ServedBase:
        """The base of that served name; the default if it is empty."""
        return self.by_name[name] if name else self.default

    def requested(self, name: str | None, param: str) -> ServedBase:
        """The base that a request's field names; the default if it names none.

        Raises:
            BadRequest: There is none of that name.
        """
        base = self.default if name is None else self.by_name.get(name)
        if base is None:
            raise BadRequest(
                f"`{param}` must be a base that this gateway serves: {', '.join(f'`{each}`' for each in self.names)}; "
                f"got {str(name)[:100]!r}",
                param=param,
            )
        return base

    def serving(self, fingerprint: Mapping[str, Any]) -> ServedBase | None:
        """The base on which a version of this stored fingerprint can serve; None: it was proven on another."""
        proven = Fingerprint.model_validate(fingerprint)
        return next((base for base in self if proven.servable_with(base.fingerprint)), None)
