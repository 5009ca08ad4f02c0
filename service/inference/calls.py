"""Calls to the engine: what is owed for each, and which of them outlive their client."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from service.admission.queue import Permit
from service.errors import EngineUnavailable, HatrackError, Timeout
from service.inference.relay import engine_error
from service.inference.upstream import Upstream, UpstreamResponse
from service.registry.catalog import Target
from service.telemetry.record import Record


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the engine gets it, at ``path``; ``began`` is when it arrived here, on the performance counter."""

    path: str
    payload: bytes
    began: float


class EngineCalls:
    """Sends requests to the engine.

    Args:
        engine: The engine's client.
        saw_tokens: Called when the engine gave something: a sign of life.
        timeout_s: Longest time for one answer of the tokenizer, s.
    """

    def __init__(self, engine: Upstream, saw_tokens: Callable[[], None], timeout_s: float) -> None:
        self._engine = engine
        self._saw_tokens = saw_tokens
        self._timeout_s = timeout_s
        self._tokenizing: set[asyncio.Task[tuple[bytes, int]]] = set()

    @asynccontextmanager
    async def open(self, call: Call, record: Record) -> AsyncIterator[UpstreamResponse]:
        """Send a request, and write into ``record`` what is owed for it from now on, however it ends.

        Raises:
            EngineUnavailable: There is no engine: nothing was sent, and nothing is owed.
        """
        # the engine's request ids must be unique, a client's need not be: the engine gets one of our own
        headers = {"content-type": "application/json", "x-request-id": secrets.token_hex(16)}
        if record.span is not None:
            headers.update(record.span.headers)
        record.sent_s = time.perf_counter() - call.began
        # of an answer that comes in one piece, all may have been generated when its client leaves
        record.owed = record.prompt if record.stream else record.estimate
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(self._engine.open(call.path, call.payload, headers))
            except EngineUnavailable:
                record.owed = None
                raise
            except HatrackError:
                record.owed = record.prompt
                raise
            if response.status == 200:
                record.reached, record.owed = True, record.estimate
            else:
                record.owed = record.prompt
            yield response

    async def count(
        self, call: Call, record: Record, target: Target, pattern: re.Pattern[bytes] | None, place: Permit | None
    ) -> tuple[bytes, int]:
        """Have the engine's tokenizer answer; the answer and the number of tokens.

        The engine tokenizes on when nobody waits for it any longer. So the call is a task of its own, which ends with
        the engine's answer and gives ``place`` back then, whether or not the client has stayed.

        Args:
            pattern: Finds the number of tokens in the answer; None: the estimate is it.

        Raises:
            HatrackError: As the engine says.
        """
        task = asyncio.create_task(self._tokenize(call, record, target, pattern, place), name="tokenize")
        self._tokenizing.add(task)
        task.add_done_callback(self._tokenized)
        return await asyncio.shield(task)

    async def _tokenize(
        self, call: Call, record: Record, target: Target, pattern: re.Pattern[bytes] | None, place: Permit | None
    ) -> tuple[bytes, int]:
        tokens: int | None = record.estimate
        try:
            async with asyncio.timeout(self._timeout_s), self.open(call, record) as response:
                answer = await response.read()
                if response.status != 200:
                    raise engine_error(response.status, answer, target, call.path)
            self._saw_tokens()
            match = None if pattern is None else pattern.search(answer)
            tokens = record.estimate if match is None else int(match[1])
            return answer, tokens
        except EngineUnavailable:
            tokens = record.owed
            raise
        except TimeoutError:
            raise Timeout(f"the engine's tokenizer took longer than {self._timeout_s:g} s") from None
        finally:
            if place is not None:
                place.leave(tokens, answered=record.reached)

    def _tokenized(self, task: asyncio.Task[tuple[bytes, int]]) -> None:
        self._tokenizing.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also where the client has left
