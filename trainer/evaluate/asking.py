"""Asking arms: greedily, through the gateway as any client would, a bounded number at once, and nothing twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from trainer.errors import AnswerRefused, AnswerUnreadable, ArmUnservable, EndpointUnknown
from trainer.evaluate.answers import Answer, Key, RecordFile
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.endpoint_client import Endpoint, EndpointClient
from trainer.runs.gateway import PATIENCE_S

CHAT_PATH: Final = "/v1/chat/completions"
MAX_TOKENS: Final = 256
CONCURRENCY: Final = 8
PER_QUESTION_STATUSES: Final = frozenset({400, 403, 413, 422, 451})
"""Refusals of what is asked (a filter of contents, a length) and not of who asks, or of the model."""


@dataclass(frozen=True, slots=True)
class ArmRequest:
    """One question to one arm; `repeat` counts from 0."""

    arm: Arm
    question: Question
    repeat: int = 0


OnProgress = Callable[[int, int], None]
"""Called with how many answers are there and how many are wanted; may raise to end the asking."""


class Answerer(Protocol):
    """Gives answers; `HttpAnswerer` is the real one."""

    async def answer(self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        """An answer to every ask, in their order; never fewer.

        Raises:
            AnswerRefused: One of them will not be answered; ArmUnservable where that is the arm's fault.
            EndpointUnknown: An arm's endpoint is not in the settings.
            GatewayUnreachable: It was away for too long.
            AnswerUnreadable: An answer without a text.
        """
        ...


class LenientAnswerer(Protocol):
    """Gives what answers it can; `HttpAnswerer` is the real one."""

    async def answer_or_leave(
        self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None
    ) -> list[Answer | None]:
        """An answer to every ask, in their order; None where what was asked is refused, or has no text for an answer.

        Raises:
            AnswerRefused: Who asks is refused, or the model; ArmUnservable where it is not there.
            EndpointUnknown: An arm's endpoint is not in the settings.
            GatewayUnreachable: It was away for too long.
        """
        ...


class HttpAnswerer:
    """Asks over HTTP and keeps every answer in a file, so that asking the same again asks only for what is missing.

    Args:
        gateway: With the job's key, whose requests are served behind callers'.
        book: The JSONL file of answers; for one answerer at a time.
        endpoints: Outside endpoints by name, from the operator's settings.
        max_tokens: Longest answer; one that is cut there says so in its finish_reason.
        concurrency: Most requests at once, to all endpoints together.
        wait: Awaited instead of sleeping; may raise to end the waiting.
        patience_s: How long an endpoint may be away.
    """

    def __init__(
        self,
        gateway: Endpoint,
        book: Path,
        *,
        endpoints: Mapping[str, Endpoint] | None = None,
        max_tokens: int = MAX_TOKENS,
        concurrency: int = CONCURRENCY,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._endpoints = {**(endpoints or {})}
        self._gateway = gateway
        self._book = book
        self._max_tokens = max_tokens
        self._concurrency = concurrency
        self._wait = wait
        self._patience_s = patience_s

    async def answer(self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        """An answer to every ask, in their order. Raises as `Answerer.answer`, and what `on_progress` raises."""
        found = await self._answers(asks, on_progress, leave=False)
        return [answer for answer in found if answer is not None]

    async def answer_or_leave(
        self, asks: Sequence[ArmRequest], on_progress: OnProgress | None = None
    ) -> list[Answer | None]:
        """See `LenientAnswerer`. Raises what `on_progress` raises, too."""
        return await self._answers(asks, on_progress, leave=True)

    async def _answers(
        self, asks: Sequence[ArmRequest], on_progress: OnProgress | None, *, leave: bool
    ) -> list[Answer | None]:
        bodies = [self._body(ask) for ask in asks]
        with RecordFile(self._book, Answer) as book:
            missing = [
                (ask, body)
                for ask, body in zip(asks, bodies, strict=True)
                if not _answers(book.found.get(_key(ask)), ask, body)
            ]
            there = len(asks) - len(missing)
            if on_progress is not None:
                on_progress(there, len(asks))
            todo, left = iter(missing), set[Key]()
            async with self._wires({ask.arm.endpoint for ask, _ in missing}) as wires:

                async def work() -> None:
                    nonlocal there
                    for ask, body in todo:
                        try:
                            book.add(await _ask(wires[ask.arm.endpoint], ask, body))
                        except (AnswerRefused, AnswerUnreadable) as error:
                            if not (leave and _is_about_the_question(error)):
                                raise
                            left.add(_key(ask))
                        there += 1
                        if on_progress is not None:
                            on_progress(there, len(asks))

                await all_or_first_error(work() for _ in range(min(self._concurrency, len(missing))))
            return [None if _key(ask) in left else book.found[_key(ask)] for ask in asks]

    def _body(self, ask: ArmRequest) -> dict[str, Any]:
        """The request of an ask. Outside endpoints get OpenAI's documented fields alone, and what the settings name."""
        if ask.arm.endpoint is not None and ask.arm.endpoint not in self._endpoints:
            raise EndpointUnknown(f"the settings name no endpoint {ask.arm.endpoint[:60]!r}")
        endpoint = self._gateway if ask.arm.endpoint is None else self._endpoints[ask.arm.endpoint]
        body: dict[str, Any] = {
            "model": ask.arm.model,
            "messages": ask.arm.prompt.messages(ask.question),
            **endpoint.sampling(self._max_tokens),
        }
        if ask.arm.grounding is not None:
            body["grounding"] = ask.arm.grounding
        return body

    @asynccontextmanager
    async def _wires(self, names: set[str | None]) -> AsyncIterator[dict[str | None, EndpointClient]]:
        wires: dict[str | None, EndpointClient] = {}
        try:
            for name in names:
                endpoint = self._gateway if name is None else self._endpoints[name]
                wires[name] = EndpointClient(
                    endpoint, connections=self._concurrency, wait=self._wait, patience_s=self._patience_s
                )
            yield wires
        finally:
            for wire in wires.values():
                await wire.close()


async def all_or_first_error(works: Iterator[Awaitable[None]]) -> None:
    """Run them beside each other; the first error ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(wire: EndpointClient, ask: ArmRequest, body: dict[str, Any]) -> Answer:
    began = time.monotonic()
    try:
        found, headers = await wire.post(CHAT_PATH, body)
    except AnswerRefused as error:
        kind = ArmUnservable if isinstance(error, ArmUnservable) else AnswerRefused
        message = f"{ask.arm.label!r} ({ask.arm.model}) did not answer example {ask.question.id}: {error.message}"
        raise kind(error.status, error.answer_code, message) from error
    try:
        choice = found["choices"][0]
        usage = found.get("usage") or {}
        return Answer(
            arm=ask.arm.label,
            example=ask.question.id,
            repeat=ask.repeat,
            request=_digest(ask, body),
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=round(time.monotonic() - began, 4),
            version=headers.get("x-hatrack-adapter"),
            digest=headers.get("x-hatrack-digest"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise AnswerUnreadable(
            f"{ask.arm.label!r} ({ask.arm.model}) gave no text to example {ask.question.id}"
        ) from error


def _is_about_the_question(error: AnswerRefused | AnswerUnreadable) -> bool:
    """Whether another question to the same arm may well be answered."""
    return isinstance(error, AnswerUnreadable) or error.status in PER_QUESTION_STATUSES


def _key(ask: ArmRequest) -> Key:
    return ask.arm.label, ask.question.id, ask.repeat


def _digest(ask: ArmRequest, body: dict[str, Any]) -> str:
    content = json.dumps([ask.arm.endpoint, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _answers(found: Answer | None, ask: ArmRequest, body: dict[str, Any]) -> bool:
    """Whether an answer on file is one to this very question: a label may have been given to another arm since."""
    return found is not None and found.request == _digest(ask, body)
