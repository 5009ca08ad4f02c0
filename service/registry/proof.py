"""Proof of effect: does the engine really apply this adapter, and is the base model intact afterwards?

The texts, the schema and the arithmetic are in ``adapters.proof``; here the engine is asked. Proofs go one after
another: each asks the base beside the adapter, and company moves the last bits of both.

One proof is, in this order: the probes under the base, the adapter and the base again; one long plain text under the
adapter (under the base once for each engine); the probes under both, and under another loaded adapter, at the same
time; and the base once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from adapters.errors import AdapterError, LogprobsNotFinite, NotApplied, ProofError
from adapters.perplexity import LONG_PROMPT, PLAIN_TEXT, Perplexity, compare_perplexity
from adapters.proof import (
    MAX_ATTEMPTS,
    PROBES,
    Evidence,
    Logprobs,
    ProbeAnswer,
    Proof,
    has_drifted,
    is_finite,
    judge_probes,
)
from service.admission.background import BackgroundEngine
from service.engine.contract import ENGINE_NOT_FINITE
from service.errors import (
    AdapterNotFinite,
    BadGateway,
    EngineCut,
    EngineUnavailable,
    HatrackError,
    Timeout,
    Unavailable,
    Unprocessable,
)
from service.registry.mixed_batch import ENGINE_ONLY_ERRORS, MixedBatchCheck, Neighbours, no_neighbours

WARM_TIMEOUT_S: Final = 60.0
BASE_CHECKS: Final = 2
"""A base model that fails this many times in a row is corrupt; a single answer may be a fluke of its batch."""

PROOF_RETRY_S: Final = 30
"""Retry-After where other proofs took the time: about what one of them takes on a CPU."""


class Prober:
    """Probes adapters, and the base model.

    Args:
        engine: The engine's client for background requests.
        base_name: The base's served name.
        restart_engine: Called with a reason when the engine is poisoned; returns when the restart has begun.
        timeout_s: Longest time for one proof once its turn has come.
        neighbours: Returns adapters that can share a batch.
    """

    def __init__(
        self,
        engine: BackgroundEngine,
        base_name: str,
        restart_engine: Callable[[str], Awaitable[None]],
        *,
        timeout_s: float,
        neighbours: Neighbours = no_neighbours,
    ) -> None:
        self._engine = engine
        self._base_name = base_name
        self._restart = restart_engine
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        # of the one fingerprint that this process serves; a restarted engine is measured against it
        self._cached: Logprobs | None = None
        self._plain: Sequence[float] | None = None
        self._mixed_batch = MixedBatchCheck(engine, neighbours, alone=self._under, healthy_base=self._healthy_base)

    async def prove(self, digest: str, *, effect_is_zero: bool, reference: Proof | None) -> Evidence:
        """Prove one adapter. The evidence holds its perplexity, whatever that is: the caller decides on it.

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
                raise Timeout(
                    f"the proof did not finish within {self._timeout_s:g} s (HATRACK_PROOF_TIMEOUT_S)"
                ) from None

    async def _then_base(self, rounds: Awaitable[Evidence]) -> Evidence:
        """Check the base once more, however the proof ended: an adapter may leave the engine corrupt."""
        try:
            evidence = await rounds
        except LogprobsNotFinite:
            # the base was healthy just before, so the adapter is to blame, even if it corrupted the engine
            with suppress(*ENGINE_ONLY_ERRORS):
                await self._healthy_base()
            raise
        except (Unavailable, EngineCut):
            raise
        except (AdapterError, HatrackError):
            await self._healthy_base()  # on a corrupt engine the result means nothing
            raise
        await self._healthy_base()
        return evidence

    async def _rounds(self, digest: str, effect_is_zero: bool, reference: Proof | None) -> Evidence:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            before = await self._healthy_base()
            under = await self._under(digest)
            again = await self._engine.logprobs(self._base_name, PROBES)
            try:
                evidence = judge_probes(
                    _answers(before, reference),
                    _answers(again if is_finite(again) else before, reference),
                    _answers(under, reference),
                    effect_is_zero=effect_is_zero,
                    reference=reference,
                )
            except NotApplied:
                if attempt == MAX_ATTEMPTS:
                    raise
            else:
                return await self._extended(digest, evidence, before, under)
        raise AssertionError("the last round returns or raises")

    async def _extended(self, digest: str, evidence: Evidence, base: Logprobs, under: Logprobs) -> Evidence:
        """The evidence with what short probes asked alone do not show."""
        perplexity = await self._perplexity(digest)
        mixed, mixed_warnings = await self._mixed_batch.check(digest, base, under)
        warnings = evidence.warnings + mixed_warnings
        if not perplexity.is_long:
            warnings += (
                f"The engine's context holds only {perplexity.tokens} tokens of the plain text: "
                f"no prompt of more than {LONG_PROMPT} tokens was tested.",
            )
        return evidence.model_copy(update={"perplexity": perplexity, "mixed_batch": mixed, "warnings": warnings})

    def require_engine(self) -> None:
        """Raise EngineUnavailable if no proof can begin now."""
        self._engine.require_ready()

    async def perplexity(self, digest: str) -> Perplexity:
        """The adapter's perplexity over plain text.

        Raises:
            Unavailable: It took longer than a proof may, the wait for other proofs included.
            ProofError, HatrackError: As ``prove``.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                await self._healthy_base()
                return await self._perplexity(digest)
        except TimeoutError:
            raise Unavailable(
                f"the adapter could not be measured within {self._timeout_s:g} s (HATRACK_PROOF_TIMEOUT_S); the engine "
                "is busy, or other proofs are queued; try again later",
                retry_after=PROOF_RETRY_S,
            ) from None

    async def _perplexity(self, digest: str) -> Perplexity:
        base = await self._plain_base()
        (row,) = await self._under(digest, (PLAIN_TEXT,))
        return compare_perplexity(base, row)

    async def _plain_base(self) -> Sequence[float]:
        """The base model's log-probabilities over the plain text; cached per engine."""
        if self._plain is None:
            answer = await self._engine.logprobs(self._base_name, (PLAIN_TEXT,))
            if not is_finite(answer, 1):
                raise BadGateway(
                    "some of the base's log-probabilities for a long prompt are missing or not finite; "
                    "no adapter can be proven until the engine is restarted",
                    code=ENGINE_NOT_FINITE,
                )
            self._plain = answer[0]
        return self._plain

    # asking

    async def _under(self, digest: str, texts: Sequence[str] = PROBES) -> Logprobs:
        """Of an adapter that is asked alone: what the engine refuses is its fault, but for what says nothing of it."""
        try:
            answer = await self._engine.logprobs(digest, texts)
        except AdapterNotFinite as error:
            raise LogprobsNotFinite(
                f"With this adapter the engine produces NaN or infinite values: {error.message}"
            ) from error
        except ENGINE_ONLY_ERRORS:
            raise
        except HatrackError as error:
            raise Unprocessable(f"the engine rejects this adapter: {error.message}", code="engine_refused") from error
        if not is_finite(answer, len(texts)):
            raise LogprobsNotFinite(
                "With this adapter some of the engine's log-probabilities are missing or not finite."
            )
        return answer

    async def _healthy_base(self) -> Logprobs:
        """The base's log-probabilities, near the cached ones. Raises EngineUnavailable where the engine is poisoned."""
        answer: Logprobs = ()
        for _ in range(BASE_CHECKS):
            try:
                answer = await self._engine.logprobs(self._base_name, PROBES)
            except ENGINE_ONLY_ERRORS:
                raise
            except HatrackError:
                continue  # the base must always answer: the engine itself says that it cannot
            if is_finite(answer) and not self._drifted(answer):
                if self._cached is None:
                    self._cached = answer
                return answer
        finite = bool(answer) and is_finite(answer)
        if finite:
            self._cached = (
                None  # a fresh engine that still differs is trusted, otherwise it would be restarted for ever
            )
        self._plain = None
        self._mixed_batch.forget()
        reason = (
            "the base model's log-probabilities have drifted"
            if finite
            else "the base model's log-probabilities are not finite"
        )
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
        """Return once the base answers correctly; asks every ``delay_s`` seconds."""
        while True:
            try:
                async with self._turn:
                    await self._healthy_base()
            except ENGINE_ONLY_ERRORS:
                await asyncio.sleep(delay_s)
            else:
                return

    async def answers(self, digest: str) -> bool:
        """Whether the engine gives finite log-probabilities under the adapter.

        Raises EngineUnavailable, EngineCut, Timeout or RateLimited where that says nothing about the adapter.
        """
        async with self._turn:
            try:
                await self._under(digest)
            except (LogprobsNotFinite, Unprocessable):
                return False
            return True

    async def check_base(self) -> None:
        """Check that the base answers correctly; if not, restart the engine and raise EngineUnavailable."""
        async with self._turn:
            await self._healthy_base()

    async def warm(self, digest: str) -> None:
        """Make the engine load the adapter, by one short text.

        Raises:
            HatrackError: As the engine says.
            Timeout: It took more than 60 s.
        """
        try:
            async with asyncio.timeout(WARM_TIMEOUT_S):
                await self._engine.logprobs(digest, PROBES[1:2])
        except TimeoutError:
            raise Timeout(f"the engine did not load the adapter within {WARM_TIMEOUT_S:g} s") from None


def _answers(rows: Logprobs, reference: Proof | None) -> list[ProbeAnswer]:
    """The rows as ``adapters.proof`` weighs them.

    The engine tells no token ids here, so as many tokens as in the reference stand for the same tokens.
    """
    known = [probe.token_ids for probe in reference.probes] if reference else [()] * len(rows)
    return [
        ProbeAnswer(token_ids=ids if len(ids) == len(row) + 1 else (0,) * (len(row) + 1), logprobs=tuple(row))
        for ids, row in zip(known, rows, strict=True)
    ]
