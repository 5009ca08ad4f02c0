"""The settings of processes beside the gateway, a part of ``service.config.Settings``: agents."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

MIN_SECRET_CHARS = 16


class ClusterSettings(BaseSettings):
    """How the gateway and its engines' agents find and trust each other."""

    agent_key: SecretStr | None = Field(
        None,
        min_length=MIN_SECRET_CHARS,
        description="Shared secret of `hatrack agent` and its gateways (`deploy/AGENTS.md`), at least 16 characters.",
    )
    agent_timeout_s: float = Field(
        10,
        gt=0,
        description="Silence after which an agent counts as down, s: what waits for it ends or goes to another one.",
    )


def agent_problem(agent: str, engine_url: str, key: SecretStr | None) -> str | None:
    """What is wrong with the address of an agent; None if nothing is."""
    if agent and engine_url:
        return "HATRACK_ENGINE_AGENT and HATRACK_ENGINE_URL are both set: an agent has its engine; unset one of them"
    if agent and key is None:
        return "HATRACK_ENGINE_AGENT is set: HATRACK_AGENT_KEY, the shared secret of the agent, must be set too"
    return None
