"""The settings of processes beside the gateway, a part of ``service.config.Settings``: agents and fronts."""

from __future__ import annotations

from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

MIN_SECRET_CHARS = 16
ANNOUNCED: Final = "announced"
"""In the place of an agent's address: that which the agent announces itself with."""


class ClusterSettings(BaseSettings):
    """How the gateway, its engines' agents and its fronts find and trust each other."""

    agent_key: SecretStr | None = Field(
        None,
        min_length=MIN_SECRET_CHARS,
        description="Shared secret of `hatrack agent` and those who use its engine (`deploy/AGENTS.md`), at least 16 "
        "characters.",
    )
    agent_timeout_s: float = Field(
        10,
        gt=0,
        description="Silence after which an agent counts as down, s: what waits for it ends or goes to another one.",
    )
    agent_announce: str = Field(
        "",
        description="For `hatrack agent`: the gateway that it announces itself to, `http://host:port` "
        "(`deploy/AGENTS.md`). Unset: the gateway is told the agent's address.",
    )
    agent_url: str = Field(
        "",
        description="The address that an agent announces, `http://host:port`. Unset: the one that it listens on.",
    )
    front_gateway: str = Field(
        "",
        description="For `hatrack front`: the gateway that it answers for, `http://host:port` (`deploy/FRONTS.md`).",
    )
    front_key: SecretStr | None = Field(
        None,
        min_length=MIN_SECRET_CHARS,
        description="Shared secret of the gateway and its fronts, at least 16 characters. Unset: the gateway has no "
        "fronts.",
    )
    front_max_age_s: float = Field(
        60,
        gt=0,
        description="How long a front goes on answering without hearing from the gateway, s; then 503. A key that is "
        "revoked meanwhile is valid there for as long.",
    )


def agent_problem(agent: str, engine_url: str, key: SecretStr | None) -> str | None:
    """What is wrong with the address of an agent; None if nothing is."""
    if agent and engine_url:
        return "HATRACK_ENGINE_AGENT and HATRACK_ENGINE_URL are both set: an agent has its engine; unset one of them"
    if agent and key is None:
        return "HATRACK_ENGINE_AGENT is set: HATRACK_AGENT_KEY, the shared secret of the agent, must be set too"
    return None
