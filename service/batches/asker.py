"""Asks the requests of one batch that have no result yet, a bounded number at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from service.access.caller import Caller
from service.batches.asking import ENGINE_UNAVAILABLE, Answer, Ask, GroundingPatience, retry_of
from service.batches.lines import InputLines, LineRequest, RefusedLine
from service.batches.pace import Pace
from service.batches.results import Result, ResultLog, ResultWriter, Usage, answer_line, refused_line, usage_of
from service.concurrency import in_thread
from service.errors import Unauthenticated

CLOCK_CHECK_S: Final = 60.0
CANCEL_GRACE_S: Final = 60.0
"""How long a batch that is stopped waits for the requests that are being answered, s."""


@dataclass(frozen=True, slots=True)
class AskContext:
    """What the batches share: ``slots`` bounds the requests of all of them, there are ``concurrency``; ``answered``
    counts requests since the start by `completed` and `failed`; ``base_trouble`` says why no engine of a base takes
    requests (None: one does)."""

    ask: Ask
    slots: asyncio.Semaphore
    concurrency: int
    answered: dict[str, int]
    base_trouble: Callable[[str], str | None]


class Asker:
    """Asks for one batch.

    Args:
        context: What it shares with other batches.
        pace: Says when it may ask.
        log: Opened before :meth:`ask_all`; knows which requests have a result.
        writer: Writes results to it.
    """

    def __init__(self, context: AskContext, pace: Pace, log: ResultLog, writer: ResultWriter) -> None:
        self._context = context
        self._slots = context.slots
        self._pace = pace
        self._log = log
        self._writer = writer
        self.stopping = asyncio.Event()
        """No request is begun any more."""
        self.key_error: Unauthenticated | None = None
        """Why the batch's key is not valid any more."""
        self._failure: BaseException | None = None
        self._patience = GroundingPatience()
        self._tasks: set[asyncio.Task[None]] = set()
        self._away: set[str] = set()
        """The bases without an engine, for which this pass over the input has left requests."""
        self.answering = 0
        """Requests that are being answered now."""

    async def ask_all(
        self, open_input: Callable[[], InputLines], endpoint: str, expires_at: int
    ) -> Literal["done", "expired", "stopped", "key_gone"]:
        """Ask every request that has no result, in the order of their lines; returns why it ends.

        Requests for a base that has no engine are passed over while another base has one, and asked later.

        Raises:
            Exception: Whatever failed unexpectedly; it can be called again.
        """
        self._failure, grace_s = None, 0.0
        feeding = asyncio.create_task(self._feed(open_input, endpoint))
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            while not feeding.done() and not stopping.done():
                left_s = expires_at - time.time()
                if left_s <= 0:
                    return "expired"
                # the clock on the wall may be set meanwhile
                await asyncio.wait(
                    {feeding, stopping}, timeout=min(left_s, CLOCK_CHECK_S), return_when=asyncio.FIRST_COMPLETED
                )
            if feeding.done():
                feeding.result()
            grace_s = CANCEL_GRACE_S
        finally:
            stopping.cancel()
            feeding.cancel()
            await asyncio.gather(feeding, stopping, return_exceptions=True)
            self._writer.write_all_the_same()
            await self._drain(grace_s)
        if self._failure is not None:
            self.stopping.clear()
            raise self._failure
        if self.key_error is not None:
            return "key_gone"
        return "stopped" if self.stopping.is_set() else "done"

    async def _feed(self, open_input: Callable[[], InputLines], endpoint: str) -> None:
        try:
            caller = await self._pace.turn()
            parallel = asyncio.Semaphore(_parallel(caller, self._context.concurrency))
            while True:
                self._away.clear()
                await self._feed_once(open_input(), endpoint, parallel)
                await self._all_answered()
                if not self._away or self.stopping.is_set():
                    break
                await self._pace.until_served(self._trouble)
        except Unauthenticated as error:
            self._stop(key_error=error)
        await self._all_answered()

    async def _all_answered(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _feed_once(self, lines: InputLines, endpoint: str, parallel: asyncio.Semaphore) -> None:
        """One pass over the requests without a result. Raises Unauthenticated."""
        parts = lines.requests(endpoint, self._log.tally.has)
        while (part := await in_thread(next, parts, None)) is not None:
            for request in part:
                if isinstance(request, RefusedLine):
                    await self._refuse(request)
                    continue
                await parallel.acquire()
                if self._is_away(await self._pace.turn(), request):
                    parallel.release()
                    continue
                await self._slots.acquire()  # one at a time for each batch, so that they take turns
                task = asyncio.create_task(self._request(request, endpoint, parallel), name="batch-request")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _is_away(self, caller: Caller, request: LineRequest) -> bool:
        """Whether the request's base has no engine now; then it is noted."""
        base = self._context.ask.base_of(caller, request.body)
        if base is None or self._context.base_trouble(base) is None:
            return False
        self._away.add(base)
        return True

    def _trouble(self) -> str | None:
        """Why no base of those that are away can be asked; None: one can."""
        troubles = {base: self._context.base_trouble(base) for base in sorted(self._away)}
        if None in troubles.values():
            return None
        return "; ".join(f"no engine of the base `{base}` is ready: {reason}" for base, reason in troubles.items())

    def _stop(self, *, key_error: Unauthenticated | None = None, failure: BaseException | None = None) -> None:
        self.key_error = key_error or self.key_error
        self._failure = failure or self._failure
        self.stopping.set()

    async def _request(self, request: LineRequest, endpoint: str, parallel: asyncio.Semaphore) -> None:
        """Ask one request until it has a result. It begins with a slot, and has none while it waits."""
        body, attempts, has_slot = orjson.dumps(request.body), 0, True
        try:
            while not self.stopping.is_set():
                caller = self._pace.now() if has_slot else None
                if caller is None:
                    if has_slot:
                        self._slots.release()
                        has_slot = False
                    await self._pace.turn()
                    await self._slots.acquire()
                    has_slot = True
                    continue
                attempts += 1
                answer = await self._answer(caller, endpoint, body)
                retry = retry_of(answer, attempts, self._patience)
                if retry is None:
                    self._slots.release()  # its result may wait for room, the batches of others need not
                    has_slot = False
                    return await self._write(request, answer)
                if retry.code == ENGINE_UNAVAILABLE and self._is_away(caller, request):
                    return None  # the next pass asks it, and the requests for other bases go on
                if retry.whole_batch:
                    attempts -= 1  # it was not sent, or is not at fault
                    self._pace.pause(retry.after_s, retry.code, retry.message)
                else:
                    self._slots.release()
                    has_slot = False
                    await asyncio.sleep(retry.after_s)
        except Unauthenticated as error:
            self._stop(key_error=error)
        except Exception as error:
            self._stop(failure=error)
        finally:
            if has_slot:
                self._slots.release()
            parallel.release()

    async def _answer(self, caller: Caller, endpoint: str, body: bytes) -> Answer:
        self.answering += 1
        try:
            return await self._context.ask(caller, endpoint, body)
        finally:
            self.answering -= 1

    async def _write(self, request: LineRequest, answer: Answer) -> None:
        parts = answer_line(
            self._log.id_of(request.number), request.custom_id, answer.status, answer.request_id, answer.body
        )
        succeeded = answer.status == 200
        usage = usage_of(answer.body) if succeeded else Usage()
        self.answering += 1  # a batch that is stopped waits for it
        try:
            await self._writer.add(Result(request.number, succeeded, parts, usage))
            self._context.answered["completed" if succeeded else "failed"] += 1
        finally:
            self.answering -= 1

    async def _refuse(self, line: RefusedLine) -> None:
        error = {"code": line.error.code, "message": line.error.message}
        text = refused_line(self._log.id_of(line.number), line.custom_id, error)
        await self._writer.add(Result(line.number, False, (text,)))
        self._context.answered["failed"] += 1

    async def _drain(self, grace_s: float) -> None:
        """End the requests in progress; those that are being answered may take ``grace_s``."""
        deadline = time.monotonic() + grace_s
        while self._tasks and self.answering and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _parallel(caller: Caller, concurrency: int) -> int:
    """How many requests of one batch may be asked at once; of a key's own limit one place is left to its callers."""
    limit = caller.limits.concurrent
    return concurrency if limit is None else max(1, min(concurrency, limit - 1))
