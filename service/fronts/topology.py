"""Which engines and bases a gateway has and how it checks requests, as its fronts are told; and a front's fleet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from adapters.base import BaseDescription, Fingerprint
from service import __version__
from service.admission.remote import RemoteAdmission
from service.agents import Agent, Bases, ServedBase
from service.config import Settings
from service.config.cluster import ANNOUNCED
from service.config.engines import NamedEngineSettings
from service.engine.compatibility import IncompatibleEngine
from service.engine.config import EngineConfig
from service.engine.remote import RemoteEngine
from service.fleet import EngineParts, Fleet
from service.inference.engines import BaseLimits
from service.inference.length import PromptLimit

POLICY: Final = (
    *("max_body_mib", "max_n", "max_logprobs", "max_stops", "max_stop_chars", "max_schema_kib", "unknown_fields"),
    *("request_timeout_s", "max_in_flight", "queue_timeout_s", "agent_timeout_s", "cors_origins"),
)
"""Settings by which a front checks and answers requests as its gateway does, whatever its own environment says."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ToldBase(_Told):
    """A base, and the longest prompt for it."""

    name: str
    created_at: int
    fingerprint: Fingerprint
    context: int | None
    prompt_tokens: int | None
    token_chars: int


class ToldEngine(_Told):
    """An engine; ``agent`` is the address of its agent, or ANNOUNCED. None: only the gateway reaches it."""

    name: str
    label: str | None
    base: str
    agent: str | None
    slots: int
    max_rank: int
    resident: int


class Topology(_Told):
    """What changes only when the gateway starts anew."""

    version: str
    policy: dict[str, Any]
    embedder: str | None
    bases: tuple[ToldBase, ...]
    engines: tuple[ToldEngine, ...]

    @property
    def local_bases(self) -> tuple[ToldBase, ...]:
        """The bases all of whose engines a front reaches."""
        behind = {base.name for base in self.bases} - {each.base for each in self.engines if each.agent is None}
        return tuple(base for base in self.bases if base.name in behind)


def topology_of(
    settings: Settings, fleet: Fleet, limits: Mapping[str, BaseLimits], embedder_name: str | None
) -> Topology:
    """The topology of a gateway.

    Args:
        limits: What each base demands, by its served name.
    """
    return Topology(
        version=__version__,
        policy={name: getattr(settings, name) for name in POLICY},
        embedder=embedder_name,
        bases=tuple(
            ToldBase(
                name=base.name,
                created_at=base.created_at,
                fingerprint=base.fingerprint,
                context=limits[base.name].context,
                prompt_tokens=limits[base.name].prompt_limit.tokens,
                token_chars=limits[base.name].prompt_limit.token_chars,
            )
            for base in fleet.bases
        ),
        engines=tuple(
            ToldEngine(
                name=each.agent.name,
                label=each.label,
                base=each.base.served_name,
                agent=each.agent.settings.engine_agent or None,
                slots=each.watched.config.slots,
                max_rank=each.watched.config.max_rank,
                resident=each.watched.config.resident,
            )
            for each in fleet.parts
        ),
    )


# at a front


class FrontEngineSettings(NamedEngineSettings):
    """The settings of an engine as a front has them; it has no checkpoint to look at."""

    told_context: int | None = None

    @property
    def context(self) -> int | None:
        """As the gateway tells it."""
        return self.told_context

    @property
    def base_dir(self) -> Path:
        """There is none."""
        return self.home / "no-base"


def limits_of(topology: Topology) -> dict[str, BaseLimits]:
    """What each base demands, by its served name; structured outputs are checked by the gateway."""
    return {
        base.name: BaseLimits(PromptLimit(base.prompt_tokens, base.token_chars), None, base.context)
        for base in topology.bases
    }


def front_fleet(settings: Settings, topology: Topology) -> Fleet | None:
    """The engines that a front reaches; None: it reaches none. Nothing is started.

    Args:
        settings: The front's own.
    """
    bases = {base.name: base for base in topology.local_bases}
    # a front never looks at a base's layers
    described = {
        base.name: BaseDescription(base.name, base.fingerprint, {}, frozenset(), 0.0) for base in bases.values()
    }
    parts = [
        _parts(settings, topology, each, bases[each.base], described[each.base])
        for each in topology.engines
        if each.base in bases
    ]
    if not parts:
        return None
    served = [
        ServedBase(described[name], base.created_at, [each.agent for each in parts if each.base is described[name]])
        for name, base in bases.items()
    ]
    return Fleet(tuple(parts), Bases(served))


def engine_settings(settings: Settings, topology: Topology, base: ToldBase, engine: ToldEngine) -> FrontEngineSettings:
    """One engine's settings, with the gateway's policy."""
    return FrontEngineSettings(
        **settings.model_dump()
        | topology.policy
        | {
            "base_name": base.name,
            "base_model": "",
            "knowledge": False,
            "engines": None,
            "engine_url": "",
            "engine_agent": engine.agent or "",
            "engine_name": engine.label,
            "engine_slots": engine.slots,
            "engine_resident": engine.resident,
            "engine_max_rank": engine.max_rank,
            "told_context": base.context,
        }
    )


def _parts(
    settings: Settings, topology: Topology, told: ToldEngine, base: ToldBase, described: BaseDescription
) -> EngineParts:
    own = engine_settings(settings, topology, base, told)
    assert own.agent_key is not None  # noqa: S101  a front does not start without it
    engine = RemoteEngine(
        EngineConfig.from_settings(own),
        address=None if own.engine_agent == ANNOUNCED else own.engine_agent,
        secret=own.agent_key.get_secret_value(),
        silence_s=own.agent_timeout_s,
        check=lambda report, _store: _check(report, base),
    )
    admission = RemoteAdmission(own, engine)
    agent = Agent(
        name=told.name,
        settings=own,
        client=engine.client,
        background=admission.background_engine,
        restart=engine.restart,
        is_ready=lambda: engine.ready,
        load=lambda: admission.queue.load,
    )
    return EngineParts(agent, described, engine, admission, engine.clock)


def _check(report: Mapping[str, Any], base: ToldBase) -> None:
    """Raise IncompatibleEngine if an agent's engine is not the gateway's; the gateway checks the rest."""
    names, reported = report.get("names"), report.get("base")
    if not isinstance(names, list) or base.name not in names:
        raise IncompatibleEngine(f"it does not serve the base `{base.name}` as the gateway does")
    expected = base.fingerprint.model_dump(exclude={"engine_version"})
    parts = [part for part, value in expected.items() if not isinstance(reported, dict) or reported.get(part) != value]
    if parts:
        raise IncompatibleEngine(f"its base is not the gateway's: {', '.join(parts)} differ")
