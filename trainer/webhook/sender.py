"""Sends the outbox's events to the operator's address, signed, until each has arrived or is given up.

Runs never wait for it: they end in the database, and this sends afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx

from adapters.protocol.webhooks import signed_headers
from trainer.database import Database
from trainer.webhook import outbox
from trainer.webhook.outbox import Outcome, WaitingEvent

TIMEOUT: Final = httpx.Timeout(10, connect=5)
BACK_OFF_S: Final = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0)
"""Pauses after failed attempts; after one more failure an event is given up, 27 h after its run ended."""
JITTER: Final = 0.2
"""A pause is up to this share longer, at random."""
BATCH: Final = 20
AT_ONCE: Final = 4
IDLE_S: Final = 60.0
GONE: Final = 410
"""The receiver's "never again", by Standard Webhooks."""
_LOG = logging.getLogger("hatrack.trainer.webhook")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to send, and the key to sign with."""

    url: str
    key: bytes


class WebhookSender:
    """Sends events to one address.

    Args:
        address: None if the operator has set none: then nothing is recorded and nothing sent.
    """

    def __init__(
        self, database: Database, address: Address | None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._database = database
        self._address = address
        self._http = httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False, transport=transport)
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether ends are to be told."""
        return self._address is not None

    def wake(self) -> None:
        """Look for events now: one has been added."""
        self._woken.set()

    async def start(self) -> None:
        """Start sending; what an earlier trainer left is sent first."""
        if self._address is None:
            left = await self._database.run(outbox.clear)
            if left:
                _LOG.warning("dropped %d webhook events: HATRACK_TRAINER_WEBHOOK_URL is no longer set", left)
            return
        self._task = asyncio.create_task(self._run(self._address), name="webhook")

    async def stop(self) -> None:
        """Stop sending; the next trainer goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._http.aclose()

    async def _run(self, address: Address) -> None:
        while True:
            self._woken.clear()
            try:
                pause_s = await self._round(address)
            except Exception:
                _LOG.exception("a round of webhook deliveries failed")
                pause_s = IDLE_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _round(self, address: Address) -> float:
        """Send all events that are due; returns the seconds until the next may be."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def attempt(event: WaitingEvent) -> None:
            async with limit:
                await self._attempt(address, event)

        while batch := await self._database.run(partial(outbox.due, now=time.time(), limit=BATCH)):
            await asyncio.gather(*map(attempt, batch))
        following = await self._database.run(outbox.next_at)
        return IDLE_S if following is None else min(IDLE_S, max(0.0, following - time.time()))

    async def _attempt(self, address: Address, event: WaitingEvent) -> None:
        status, problem = await self._send(address, event)
        if problem is None:
            await self._database.run(lambda db: outbox.settle(db, event, Outcome.DELIVERED))
        elif status == GONE or event.tries >= len(BACK_OFF_S):
            _LOG.error("the webhook event %s is given up after %d attempts: %s", event.id, event.tries + 1, problem)
            await self._database.run(lambda db: outbox.settle(db, event, Outcome.FAILED))
        else:
            pause_s = BACK_OFF_S[event.tries] * (1 + JITTER * random.random())  # noqa: S311 (spreads attempts)
            _LOG.warning("the webhook event %s is sent again in %.0f s: %s", event.id, pause_s, problem)
            await self._database.run(lambda db: outbox.postpone(db, event, time.time() + pause_s))

    async def _send(self, address: Address, event: WaitingEvent) -> tuple[int | None, str | None]:
        """One attempt: the status, if there was one, and what went wrong, None if the event has arrived."""
        body = event.body.encode()
        headers = {"content-type": "application/json", "user-agent": "hatrack-webhook"}
        headers |= signed_headers(address.key, int(time.time()), body, message_id=event.id)
        try:
            async with asyncio.timeout(TIMEOUT.read):  # httpx bounds each read, not all of them
                async with self._http.stream("POST", address.url, content=body, headers=headers) as response:
                    status = response.status_code  # the answer's body is not read
        except (httpx.HTTPError, TimeoutError) as error:
            return None, f"no answer ({type(error).__name__})"
        return status, None if 200 <= status < 300 else f"status {status}"
