"""A front's side of keys' limits: the gateway is asked for each request of a limited key, in batches.

So a limit holds over all fronts together. While the gateway is away, the front admits by itself, to its share of each
limit, and tells the gateway afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from service.access.buckets import Headers
from service.access.caller import Caller, Limits
from service.access.limits import FREE, KeyLimiter, Reservation, is_unlimited
from service.errors import RequestOverQuota, TokensLimited
from service.fronts.link import GatewayAway, GatewayLink
from service.fronts.wire import LIMITS_PATH, SIGN_OF_LIFE_S, Operation
from service.http.peer_errors import load_error

ASK_S: Final = 2.0
"""How long the gateway may take to answer, s; then it counts as away."""
AWAY_S: Final = 1.0
"""For how long it is not asked again, s."""
MAX_UNTOLD: Final = 100_000
"""Operations that are kept for a gateway that is away."""
_LOG: Final = logging.getLogger("hatrack.front")


class FrontLimiter:
    """The ``Limiter`` of a front's data path.

    Args:
        link: To the gateway.
        fronts: How many fronts share the limits while the gateway is away.
    """

    def __init__(self, link: GatewayLink, fronts: Callable[[], int]) -> None:
        self._link = link
        self._fronts = fronts
        self._numbers = itertools.count(1)
        self._asked: list[tuple[Operation, asyncio.Future[Any]]] = []
        self._untold: list[Operation] = []
        self._batches = 0
        self._unanswered: tuple[int, list[Operation]] | None = None
        """What was sent, and may have been done or not: it is sent again, under its number, before anything else."""
        self._failing = False
        self._session: str | None = None
        """Of the gateway, as it last said."""
        self._held: dict[int, Operation] = {}
        """Open requests that the gateway knows, by number, as a gateway that was started anew is told of them."""
        self._wake = asyncio.Event()
        self._away_until = 0.0
        self._alone = KeyLimiter()

    def enter(self, caller: Caller) -> Reservation:
        """A request arrives; the gateway is asked when its tokens are known."""
        return FREE if is_unlimited(caller.limits) else FrontReservation(self, caller, next(self._numbers))

    async def run(self) -> None:
        """Ask and tell the gateway until cancelled, and let it know that this front is there."""
        while True:
            try:
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await self._wake.wait()
            except TimeoutError:
                if not self.is_away:
                    await self._exchange()
            self._wake.clear()
            while self._asked or (self._untold and not self.is_away):
                await self._exchange()

    async def close(self) -> None:
        """Tell the gateway what has ended, if it answers."""
        while (self._unanswered is not None or self._untold) and not self.is_away:
            await self._exchange()

    @property
    def is_away(self) -> bool:
        """Whether the gateway did not answer a moment ago."""
        return asyncio.get_running_loop().time() < self._away_until

    async def ask(self, operation: Operation) -> Headers:
        """Have the gateway do it; returns the rate-limit headers.

        Raises:
            GatewayAway: It does not answer.
            HatrackError: As it refuses.
        """
        if self.is_away:
            raise GatewayAway("the gateway does not answer")
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((operation, answered))
        self._wake.set()
        answer = await answered
        if "error" in answer:
            raise load_error(answer["error"])
        return [(str(name).encode(), str(value)) for name, value in answer["headers"]]

    def tell(self, operation: Operation) -> None:
        """Have the gateway do it, later if it is away."""
        if len(self._untold) < MAX_UNTOLD:
            self._untold.append(operation)
            self._wake.set()

    def hold(self, number: int, caller: Caller, tokens: int) -> None:
        """The gateway has taken a request in, with so many tokens."""
        self._held[number] = ["hold", number, caller.key_id, caller.project, tokens]

    def settle(self, number: int, tokens: int | None) -> None:
        """A request has ended that the gateway knows, or may know."""
        held = self._held.pop(number, None)
        self.tell(["settle", number, tokens, *(held[2:4] if held else ())])

    def admit_alone(self, caller: Caller, tokens: int) -> Reservation:
        """Admit a request to this front's share of its key's limits. Raises RateLimited."""
        reservation = self._alone.enter(replace(caller, limits=self._share(caller.limits)))
        try:
            reservation.charge(tokens)
        except RequestOverQuota as error:
            reservation.close(None)
            whole = caller.limits.tokens_per_day
            if whole is None or tokens > whole:
                raise
            raise TokensLimited(
                f"The gateway is away, and until it is back this front has a share of the key's `tokens_per_day` "
                f"({whole}) that is smaller than the request: requested {tokens} (prompt and answer, estimated). "
                "Try again, or send less.",
                headers={"retry-after": str(math.ceil(AWAY_S))},
            ) from error
        except BaseException:
            reservation.close(None)
            raise
        return reservation

    def _share(self, limits: Limits) -> Limits:
        fronts = self._fronts()
        shares = {
            name: None if limit is None else max(1, limit // fronts) for name, limit in limits.model_dump().items()
        }
        return Limits(**shares)

    async def _exchange(self) -> None:
        """Send what waits. What is told goes first: it gives back what is asked for."""
        asked: list[tuple[Operation, asyncio.Future[Any]]] = []
        if self._unanswered is None:
            self._batches += 1
            self._unanswered, self._untold = (self._batches, self._untold), []
            # whoever waits no longer has told already that it is over, which would be done first
            asked, self._asked = [each for each in self._asked if not each[1].done()], []
        number, told = self._unanswered
        operations = [*told, *(operation for operation, _ in asked)]
        try:
            batch = {"number": number, "operations": operations}
            answer = await self._link.post(LIMITS_PATH, batch, timeout_s=ASK_S)
            session, answers = str(answer["session"]), list(answer["answers"])
            if len(answers) != len(operations):
                raise GatewayAway("the gateway's answer has another length")
        except Exception as error:  # whatever it is: nobody may wait for an answer that does not come
            self._fail(error, asked)
            return
        self._unanswered, self._failing = None, False
        if self._session not in (None, session):
            self._untold = [*self._held.values(), *self._untold]
        self._session = session
        for (_, answered), answer in zip(asked, answers[len(told) :], strict=True):
            if not answered.done():
                answered.set_result(answer or {"headers": []})

    def _fail(self, error: Exception, asked: list[tuple[Operation, asyncio.Future[Any]]]) -> None:
        """Ask the gateway nothing for a while, and have nobody wait for it."""
        if not self._failing:
            _LOG.warning("the gateway does not answer for limits", extra={"reason": str(error)})
        self._failing = True
        self._away_until = asyncio.get_running_loop().time() + AWAY_S
        away = GatewayAway(f"the gateway does not answer for limits: {error}")
        waiting, self._asked = [*asked, *self._asked], []
        for _, answered in waiting:
            if not answered.done():
                answered.set_exception(away)


class FrontReservation:
    """A request of a limited key, at a front."""

    __slots__ = ("_alone", "_caller", "_charged", "_headers", "_limiter", "_number", "_open")

    def __init__(self, limiter: FrontLimiter, caller: Caller, number: int) -> None:
        self._limiter = limiter
        self._caller = caller
        self._number = number
        self._charged = 0
        self._headers: Headers = []
        self._alone: Reservation | None = None
        self._open = True

    def charge(self, tokens: int) -> Awaitable[None]:
        """Charge the request's estimated tokens; raises as ``KeyLimiter.enter`` and ``charge``."""
        return self._charge(tokens)

    async def _charge(self, tokens: int) -> None:
        caller, before = self._caller, self._charged
        total = before + tokens
        # whatever becomes of the answer, the gateway may have taken it: from now on it must be settled
        self._charged = total
        if self._alone is None:
            try:
                if before:
                    operation: Operation = ["more", self._number, total]
                else:
                    operation = ["take", self._number, caller.key_id, caller.project, total]
                self._headers = await self._limiter.ask(operation)
                if self._open:
                    self._limiter.hold(self._number, caller, total)
            except GatewayAway:
                self._limiter.settle(self._number, None)
                self._alone = self._limiter.admit_alone(caller, total)
        else:
            charged = self._alone.charge(tokens)
            assert charged is None  # noqa: S101  it is a limiter of this process
        if self._alone is not None:
            self._headers = self._alone.headers()

    def headers(self) -> Headers:
        """OpenAI's rate-limit headers, as the gateway had them when it was asked."""
        return self._headers

    def close(self, tokens: int | None) -> None:
        """End the request with the ``tokens`` it used; None: nothing reached the engine. A second call does nothing."""
        if not self._open:
            return
        self._open = False
        caller = self._caller
        if self._alone is not None:
            self._alone.close(tokens)
            if tokens is not None:
                self._limiter.tell(["spent", caller.key_id, caller.project, tokens])
        elif self._charged:
            self._limiter.settle(self._number, tokens)
        else:
            self._limiter.tell(["count", caller.key_id, caller.project])
