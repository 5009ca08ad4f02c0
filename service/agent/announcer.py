"""Says to a gateway again and again where this agent is; the gateway's side is ``service.announcements``."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import orjson

from service.engine.agent_wire import (
    ANNOUNCE_EVERY_S,
    ANNOUNCE_PATH,
    ANNOUNCE_PURPOSE,
    ANNOUNCE_SOON_S,
    ANNOUNCE_TIMEOUT_S,
    NO_FREE_ENGINE,
    PROTOCOL,
    Announcement,
)
from service.engine.remote import split_address
from service.http.connection_errors import ConnectionErrors
from service.http.pool import ConnectionPool
from service.http.signing import sign, signing_key

LEAVE_S: Final = 1.0
"""How long an agent that ends waits for its gateway, s."""
_LOG: Final = logging.getLogger("hatrack.agent")


class _Refused(Exception):
    """The gateway does not take the announcement, or does not answer; the message says why.

    Args:
        code: Of its error.
    """

    def __init__(self, why: str, code: str | None = None) -> None:
        super().__init__(why)
        self.code = code


def _away(error: BaseException) -> _Refused:
    return _Refused(f"it cannot be reached ({type(error).__name__})")


_ERRORS: Final = ConnectionErrors(unreachable=_away, cut=_away, timeout=_away)


class Announcer:
    """Announces one agent.

    Args:
        gateway: Its address, as in HATRACK_AGENT_ANNOUNCE.
        secret: HATRACK_AGENT_KEY.
        name: The engine that this agent is to be in the gateway's settings; None: any free one of its base.
        base: The served name of its base.
        slots: Of its engine.
    """

    def __init__(self, gateway: str, secret: str, *, name: str | None, base: str, slots: int) -> None:
        self.gateway = gateway
        self.engine: str | None = None
        """The engine that the gateway last took this agent for."""
        self.trouble: str | None = "it has not been announced yet"
        """Why the gateway does not know this agent now; None: it does."""
        self.unused: str | None = None
        """Why the gateway that knows it sends it no requests; None: it does."""
        self._key = signing_key(secret, ANNOUNCE_PURPOSE)
        self._instance = secrets.token_hex(16)
        self._about = {"protocol": PROTOCOL, "instance": self._instance, "name": name, "base": base, "slots": slots}
        url, socket = split_address(gateway)
        self._url = url.rstrip("/")
        self._pool = ConnectionPool(socket, connect_s=ANNOUNCE_TIMEOUT_S, keep_alive_s=2 * ANNOUNCE_EVERY_S)

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[None]:
        """Announce the agent while this is open, and say at the end that it leaves.

        Args:
            address: Where gateway and fronts reach it.
        """
        work = asyncio.create_task(self._run(address), name="agent-announce")
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if self.engine is not None:
                with suppress(_Refused):
                    await self._announce(address, leaving=True, timeout_s=LEAVE_S)
            await self._pool.close()

    def shown(self) -> dict[str, str | None]:
        """What `/readyz` shows of it."""
        is_known = self.trouble is None
        return {
            "engine": self.engine if is_known else None,
            "trouble": self.trouble,
            "unused": self.unused if is_known else None,
        }

    async def _run(self, address: str) -> None:
        while True:
            trouble: str | None = None
            try:
                self.engine, self.unused = await self._announce(address)
            except _Refused as refused:
                trouble = str(refused)
                if refused.code == NO_FREE_ENGINE:  # another agent is what this one was
                    self.engine = None
            except Exception as error:  # whatever it is, an agent that nobody finds would be worse
                _LOG.exception("an announcement failed")
                trouble = type(error).__name__
            if trouble != self.trouble:
                about = {"gateway": self.gateway, "engine": self.engine, "address": address}
                if trouble is None:
                    _LOG.info("announced", extra=about)
                else:
                    _LOG.warning("the gateway does not take this agent", extra={**about, "reason": trouble})
                self.trouble = trouble
            await asyncio.sleep(ANNOUNCE_SOON_S if trouble is None and self.unused else ANNOUNCE_EVERY_S)

    async def _announce(
        self, address: str, *, leaving: bool = False, timeout_s: float = ANNOUNCE_TIMEOUT_S
    ) -> tuple[str, str | None]:
        """The engine that the gateway takes this agent for, and why it gets no requests, or None. Raises _Refused."""
        told: Any = {**self._about, "last": self.engine, "address": address, "leaving": leaving}
        body = Announcement(**told).model_dump_json().encode()
        headers = {"content-type": "application/json", **sign(self._key, "POST", ANNOUNCE_PATH, body)}
        with _ERRORS:
            async with (
                asyncio.timeout(timeout_s),
                self._pool.session.post(
                    self._url + ANNOUNCE_PATH, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return _understood(answer.status, await answer.read())


def _understood(status: int, data: bytes) -> tuple[str, str | None]:
    try:
        told = orjson.loads(data)
        if status == 200:
            return str(told["name"]), None if told["unused"] is None else str(told["unused"])[:300]
        why, code = str(told["error"]["message"])[:300], told["error"].get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        why, code = "its answer is not a Hatrack gateway's", None
    if status == 404 and "No such route" in why:
        why = f'none of its engines has `agent = "announced"` (HATRACK_ENGINES): {why}'
    raise _Refused(f"it answers with status {status}: {why}", code)
