"""Proof of effect: does the engine really answer with this adapter, and is it still itself afterwards?

The texts, the schema and the arithmetic are in ``adapters.proof``; here the engine is asked. Proofs go one after
another: each asks the base beside the adapter, and company moves the last bits of both.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from adapters.errors import AdapterError, LogprobsNotFinite, NotApplied, ProofError
from adapters.proof import MAX_ATTEMPTS, PROBES, Answer, Evidence, Logprobs, Proof, has_drifted, weigh
from service.errors import (
    AdapterNotFinite,
    EngineUnavailable,
    HatrackError,
    RateLimited,
    Timeout,
    Unavailable,
    Unprocessable,
)

ASK_TIMEOUT_S: Final = 120.0
"""Longest time for the probes under one model, s: a cold adapter loads, about 100 tokens are read."""

WARM_TIMEOUT_S: Final = 60.0
BASE_CHECKS: Final = 2
"""A base that fails this often in a row is poisoned; one answer may have been in odd company."""


class ProbeEngine(Protocol):
    """What a proof needs of the engine."""

    async def logprobs(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """For each text the log-probabilities (nats) of its tokens but the first, under a digest or the base's name.

        Raises:
            AdapterNotFinite: The engine says that the adapter's numbers are not numbers.
            EngineUnavailable: There is no engine to ask.
        """
        ...


class Prober:
    """Asks the engine about one adapter, and about itself.

    Args:
        engine: Who is asked.
        base_name: The base's served name.
        restart_engine: Called with a reason when the engine is poisoned; returns when the restart has begun.
        timeout_s: Longest time for one proof once its turn has come.
    """

    def __init__(
        self, engine: ProbeEngine, base_name: str, restart_engine: Callable[[str], Awaitable[None]], *, timeout_s: float
    ) -> None:
        self._engine = engine
        self._base_name = base_name
        self._restart = restart_engine
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        # of the one fingerprint that this process serves; a restarted engine is measured against it
        self._cached: Logprobs | None = None

    async def prove(self, digest: str, *, effect_is_zero: bool, reference: Proof | None) -> Evidence:
        """Prove one adapter.

        Raises:
            ProofError: The subclass says what the engine does not show.
            EngineUnavailable: There is no engine, or it was found poisoned and is being restarted.
            Timeout: It took longer than allowed.
            Unprocessable: The engine refuses to answer under the adapter.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._then_base(self._rounds(digest, effect_is_zero, reference))
            except TimeoutError:
                raise Timeout(f"the proof took more than {self._timeout_s:g} s") from None

    async def _then_base(self, rounds: Awaitable[Evidence]) -> Evidence:
        """Look at the base once more, however the proof ended: an adapter may leave a poisoned engine behind."""
        try:
            evidence = await rounds
        except LogprobsNotFinite:
            # the base was well just before: the adapter is to blame, also where it took the engine along
            with suppress(Unavailable, Timeout):
                await self._healthy_base()
            raise
        except Unavailable:
            raise
        except (AdapterError, HatrackError):
            await self._healthy_base()  # a poisoned engine's verdict is none
            raise
        await self._healthy_base()
        return evidence

    async def _rounds(self, digest: str, effect_is_zero: bool, reference: Proof | None) -> Evidence:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            before = await self._healthy_base()
            under = await self._under(digest)
            again = await self._ask(self._base_name)
            try:
                return weigh(
                    _answers(before, reference),
                    _answers(again if _finite(again) else before, reference),
                    _answers(under, reference),
                    effect_is_zero=effect_is_zero,
                    reference=reference,
                )
            except NotApplied:
                if attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError("the last round returns or raises")

    async def _under(self, digest: str) -> Logprobs:
        try:
            answer = await self._ask(digest)
        except AdapterNotFinite as error:
            raise LogprobsNotFinite(f"Under this adapter the engine computes no numbers: {error.message}") from error
        except (Unavailable, Timeout, RateLimited):
            raise
        except HatrackError as error:
            raise Unprocessable(f"the engine refuses this adapter: {error.message}", code="engine_refused") from error
        if not _finite(answer):
            raise LogprobsNotFinite("Under this adapter the engine's log-probabilities are not all finite numbers.")
        return answer

    async def _ask(self, model: str) -> Logprobs:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await self._engine.logprobs(model, PROBES)
        except TimeoutError:
            raise Timeout(f"the engine gave no log-probabilities within {ASK_TIMEOUT_S:g} s") from None

    async def _healthy_base(self) -> Logprobs:
        """The base's log-probabilities, near the cached ones. Raises EngineUnavailable where the engine is poisoned."""
        answer: Logprobs = ()
        for _ in range(BASE_CHECKS):
            try:
                answer = await self._ask(self._base_name)
            except (Unavailable, Timeout, RateLimited):
                raise
            except HatrackError:
                continue  # the base must always answer: the engine itself says that it cannot
            if _finite(answer) and not self._drifted(answer):
                if self._cached is None:
                    self._cached = answer
                return answer
        finite = bool(answer) and _finite(answer)
        if finite:
            self._cached = None  # a fresh engine that still differs is believed: else it would be restarted for ever
        reason = "the base's answers have moved" if finite else "the base's log-probabilities are not finite"
        await self._restart(reason)
        raise EngineUnavailable(f"the engine is being restarted: {reason}")

    def _drifted(self, answer: Logprobs) -> bool:
        if self._cached is None:
            return False
        try:
            return has_drifted(self._cached, answer)
        except ProofError:  # not even the same tokens
            return True

    async def wait_for_base(self, delay_s: float) -> None:
        """Return as soon as the base answers as it should; asks every ``delay_s`` seconds until then."""
        while True:
            try:
                async with self._turn:
                    await self._healthy_base()
            except (Unavailable, Timeout, RateLimited):
                await asyncio.sleep(delay_s)
            else:
                return

    async def answers(self, digest: str) -> bool:
        """Whether the engine gives finite log-probabilities under the adapter.

        Raises EngineUnavailable, Timeout or RateLimited where that says nothing about the adapter.
        """
        async with self._turn:
            try:
                await self._under(digest)
            except (LogprobsNotFinite, Unprocessable):
                return False
            return True

    async def check_base(self) -> None:
        """Raises EngineUnavailable where the engine is poisoned; it is being restarted then."""
        async with self._turn:
            await self._healthy_base()

    async def warm(self, digest: str) -> None:
        """Have the engine load the adapter: one short text under it.

        Raises:
            HatrackError: As the engine says.
            Timeout: It took more than 60 s.
        """
        try:
            async with asyncio.timeout(WARM_TIMEOUT_S):
                await self._engine.logprobs(digest, PROBES[1:2])
        except TimeoutError:
            raise Timeout(f"the engine did not load the adapter within {WARM_TIMEOUT_S:g} s") from None


def _finite(answer: Logprobs) -> bool:
    return len(answer) == len(PROBES) and all(row and all(map(math.isfinite, row)) for row in answer)


def _answers(rows: Logprobs, reference: Proof | None) -> list[Answer]:
    """The rows as ``adapters.proof`` weighs them.

    The engine tells no token ids here, so as many tokens as in the reference stand for the same tokens.
    """
    known = [probe.token_ids for probe in reference.probes] if reference else [()] * len(rows)
    return [
        Answer(token_ids=ids if len(ids) == len(row) + 1 else (0,) * (len(row) + 1), logprobs=tuple(row))
        for ids, row in zip(known, rows, strict=True)
    ]
