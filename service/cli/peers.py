"""What agents and gateways say of themselves to anyone who asks, for `doctor`."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, TypeAlias

from service.config.cluster import ANNOUNCED

PeerFinding: TypeAlias = tuple[Literal["ok", "warning", "failed", "skipped"], str, str]
"""A result, what was found, and what to do about it."""
PATIENCE_S: Final = 10.0


def readiness(address: str) -> dict[str, Any]:
    """The answer of `/readyz` at an address of the settings, ready or not.

    Raises:
        OSError: Nothing answers there, or something else; the message says which.
    """
    import aiohttp  # not at the top, as in `_get`: every start of the command would pay for it

    try:
        told = asyncio.run(_get(address))
        return {"status": str(told["status"]), **told}
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        raise OSError(f"nothing answers at {address} ({type(error).__name__})") from error
    except (aiohttp.ClientError, ValueError, TypeError, KeyError) as error:
        raise OSError(f"what answers at {address} is none of Hatrack's processes") from error


async def _get(address: str) -> Any:
    import aiohttp

    from service.engine.remote import split_address

    url, socket = split_address(address)
    connector: aiohttp.BaseConnector = aiohttp.UnixConnector(socket) if socket else aiohttp.TCPConnector()
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
        http.get(f"{url}/readyz") as answer,
    ):
        return await answer.json()


def agent_state(address: str) -> PeerFinding:
    """How an engine's agent is: the result, what was found, what to do."""
    if address == ANNOUNCED:
        return "skipped", "an agent's, which announces itself to the running gateway (`hatrack status`)", ""
    try:
        told = readiness(address)
        found = (
            f"{told['status']}, for {told['base']}, with {told['sessions']} sessions: the agent at {address} "
            "(HATRACK_ENGINE_AGENT)"
        )
        if told["status"] == "ready":
            return "ok", found, ""
        return "warning", found, str(told["engine"]["reason"])
    except (OSError, KeyError, TypeError) as error:
        return "failed", str(error), "start `hatrack agent` there; deploy/AGENTS.md"


def front_gateway(address: str) -> PeerFinding:
    """Whether the gateway of a front can be reached and may have fronts: the result, what was found, what to do."""
    try:
        told = readiness(address)
    except OSError as error:
        return "failed", str(error), "start the gateway, or correct HATRACK_FRONT_GATEWAY"
    if not isinstance(told.get("fronts"), list):
        advice = "set HATRACK_FRONT_KEY on the gateway, the same as on its fronts, and restart it"
        return "failed", f"the gateway at {address} has no fronts", advice
    found = f"the gateway at {address} is {told['status']} and has {len(told['fronts'])} fronts"
    return ("ok" if told["status"] == "ready" else "warning"), found, ""
