"""Asking arms: greedy decoding, through the gateway like any client, with bounded concurrency and stored answers."""

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
from trainer.evaluate.arms import EVERYONE, Arm, Question, calls_json, with_filters
from trainer.evaluate.endpoint_client import Endpoint, EndpointClient, charge_of
from trainer.runs.gateway import PATIENCE_S
from trainer.runs.protocol import OutsideCharge

CHAT_PATH: Final = "/v1/chat/completions"
MAX_TOKENS: Final = 256
CONCURRENCY: Final = 8
PER_QUESTION_STATUSES: Final = frozenset({400, 403, 413, 422, 451})
"""Statuses that refuse one question (content filter, length), not the caller or the model."""
_PASSAGE_PARTS: Final = ("id", "source", "text")


@dataclass(frozen=True, slots=True)
class ArmRequest:
    """One question to one arm; ``repeat`` counts from 0."""

    arm: Arm
    question: Question
    repeat: int = 0


OnProgress = Callable[[int, int], None]
"""Called with the number of answers so far and the total; may raise to stop."""


OnCharge = Callable[[OutsideCharge], None]
"""Called with what each answer of an endpoint outside cost, before it is stored."""


class Answerer(Protocol):
    """Answers all requests; implemented by `HttpAnswerer`."""

    async def answer(self, requests: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        """Return an answer to every request, in the same order.

        Raises:
            AnswerRefused: A request was refused; ArmUnservable if the arm cannot be served.
            EndpointUnknown: An arm's endpoint is not in the settings.
            GatewayUnreachable: An endpoint was unreachable for too long.
            AnswerUnreadable: A response has no text.
        """
        ...


class LenientAnswerer(Protocol):
    """Answers what it can; implemented by `HttpAnswerer`."""

    async def answer_or_skip(
        self, requests: Sequence[ArmRequest], on_progress: OnProgress | None = None
    ) -> list[Answer | None]:
        """Return an answer to every request, in the same order; None if the question is refused or has no text answer.

        Raises:
            AnswerRefused: The caller or the model is refused; ArmUnservable if the arm cannot be served.
            EndpointUnknown: An arm's endpoint is not in the settings.
            GatewayUnreachable: An endpoint was unreachable for too long.
        """
        ...


class HttpAnswerer:
    """Asks over HTTP and stores every answer in a file, so that a second run only sends the missing requests.

    Args:
        gateway: With the job's key, whose requests have lower priority than callers'.
        path: The JSONL file of answers; for one answerer at a time.
        endpoints: Outside endpoints by name, from the operator's settings.
        max_tokens: Longest answer, in tokens.
        required_filters: Attributes of which every request to the gateway gives a value: EVERYONE if the question
            has none, as a suite's have.
        groundings: The versions' own groundings, by `name@3`: where there is one, a question is not shown what the
            store has of its `group`.
        template_switches: The gateway's requests' `chat_template_kwargs`, such as the one that turns thinking off.
        concurrency: Maximum concurrent requests, over all endpoints.
        wait: Awaited instead of sleeping; may raise to stop waiting.
        patience_s: How long an endpoint may be unreachable, in seconds.
        on_charge: Hears what endpoints outside charge; answers that are read from the file cost nothing again.
    """

    def __init__(
        self,
        gateway: Endpoint,
        path: Path,
        *,
        endpoints: Mapping[str, Endpoint] | None = None,
        max_tokens: int = MAX_TOKENS,
        required_filters: Sequence[str] = (),
        groundings: Mapping[str, Mapping[str, Any]] | None = None,
        template_switches: Mapping[str, bool] | None = None,
        concurrency: int = CONCURRENCY,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = PATIENCE_S,
        on_charge: OnCharge | None = None,
    ) -> None:
        self._endpoints = {**(endpoints or {})}
        self._gateway = gateway
        self._path = path
        self._max_tokens = max_tokens
        self._no_filters: dict[str, str | bool | float] = dict.fromkeys(required_filters, EVERYONE)
        self._groundings = {**(groundings or {})}
        self._template_switches = {**(template_switches or {})}
        self._concurrency = concurrency
        self._wait = wait
        self._patience_s = patience_s
        self._on_charge = on_charge

    async def answer(self, requests: Sequence[ArmRequest], on_progress: OnProgress | None = None) -> list[Answer]:
        """See `Answerer`. Also raises what `on_progress` raises."""
        answers = await self._answers(requests, on_progress, skip_refused=False)
        return [answer for answer in answers if answer is not None]

    async def answer_or_skip(
        self, requests: Sequence[ArmRequest], on_progress: OnProgress | None = None
    ) -> list[Answer | None]:
        """See `LenientAnswerer`. Also raises what `on_progress` raises."""
        return await self._answers(requests, on_progress, skip_refused=True)

    async def _answers(
        self, requests: Sequence[ArmRequest], on_progress: OnProgress | None, *, skip_refused: bool
    ) -> list[Answer | None]:
        bodies = [self._body(request) for request in requests]
        with RecordFile(self._path, Answer) as record_file:
            missing = [
                (request, body)
                for request, body in zip(requests, bodies, strict=True)
                if not _answers(record_file.records.get(_key(request)), request, body)
            ]
            done = len(requests) - len(missing)
            if on_progress is not None:
                on_progress(done, len(requests))
            pending, skipped = iter(missing), set[Key]()
            async with self._clients({request.arm.endpoint for request, _ in missing}) as clients:

                async def work() -> None:
                    nonlocal done
                    for request, body in pending:
                        try:
                            record_file.add(await self._ask(clients[request.arm.endpoint], request, body))
                        except (AnswerRefused, AnswerUnreadable) as error:
                            if not (skip_refused and _is_about_the_question(error)):
                                raise
                            skipped.add(_key(request))
                        done += 1
                        if on_progress is not None:
                            on_progress(done, len(requests))

                await all_or_first_error(work() for _ in range(min(self._concurrency, len(missing))))
            return [None if _key(request) in skipped else record_file.records[_key(request)] for request in requests]

    async def _ask(self, client: EndpointClient, request: ArmRequest, body: dict[str, Any]) -> Answer:
        started_at = time.monotonic()
        reply, headers = await _post(client, request, body)
        name = request.arm.endpoint
        if name is not None and self._on_charge is not None:
            self._on_charge(charge_of(name, self._endpoints[name].prices, reply.get("usage")))
        return _answer(request, body, reply, headers, time.monotonic() - started_at)

    def _body(self, request: ArmRequest) -> dict[str, Any]:
        """The request of an ask. Outside endpoints get OpenAI's documented fields alone, and what the settings name."""
        if request.arm.endpoint is not None and request.arm.endpoint not in self._endpoints:
            raise EndpointUnknown(f"no endpoint named {request.arm.endpoint[:60]!r} in the operator's settings")
        endpoint = self._gateway if request.arm.endpoint is None else self._endpoints[request.arm.endpoint]
        body: dict[str, Any] = {
            "model": request.arm.model,
            "messages": request.arm.prompt.messages(request.question),
            **endpoint.sampling(self._max_tokens),
        }
        if request.question.tools:
            body["tools"] = list(request.question.tools)
        if request.arm.endpoint is None and self._template_switches:
            body["chat_template_kwargs"] = self._template_switches
        grounding = self._grounding(request.arm, request.question) if request.arm.endpoint is None else None
        if grounding is not None:
            body["grounding"] = grounding
        return body

    def _grounding(self, arm: Arm, question: Question) -> dict[str, Any] | bool | None:
        filters, settings = self._no_filters | question.filters, self._groundings.get(arm.model)
        return with_filters(arm.grounding, filters, group=question.group, settings=settings)

    @asynccontextmanager
    async def _clients(self, names: set[str | None]) -> AsyncIterator[dict[str | None, EndpointClient]]:
        clients: dict[str | None, EndpointClient] = {}
        try:
            for name in names:
                endpoint = self._gateway if name is None else self._endpoints[name]
                clients[name] = EndpointClient(
                    endpoint, connections=self._concurrency, wait=self._wait, patience_s=self._patience_s
                )
            yield clients
        finally:
            for client in clients.values():
                await client.close()


async def all_or_first_error(coroutines: Iterator[Awaitable[None]]) -> None:
    """Run them concurrently; the first error cancels the others and is raised unchanged."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _post(
    client: EndpointClient, request: ArmRequest, body: dict[str, Any]
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The reply and its headers. Raises what `EndpointClient.post` does, refusals with the name of the arm."""
    try:
        return await client.post(CHAT_PATH, body)
    except AnswerRefused as error:
        kind = ArmUnservable if isinstance(error, ArmUnservable) else AnswerRefused
        message = (
            f"{request.arm.label!r} ({request.arm.model}) did not answer example {request.question.id}: {error.message}"
        )
        raise kind(error.status, error.answer_code, message) from error


def _answer(
    request: ArmRequest, body: dict[str, Any], reply: dict[str, Any], headers: Mapping[str, str], seconds: float
) -> Answer:
    """What a reply answers. Raises AnswerUnreadable if it has no text."""
    try:
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        return Answer(
            arm=request.arm.label,
            example=request.question.id,
            repeat=request.repeat,
            request=_digest(request, body),
            text=_text(choice["message"]),
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            seconds=round(seconds, 4),
            version=headers.get("x-hatrack-adapter"),
            digest=headers.get("x-hatrack-digest"),
            passages=_passages(reply) if request.arm.endpoint is None else None,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise AnswerUnreadable(
            f"{request.arm.label!r} ({request.arm.model}) returned no text for example {request.question.id}"
        ) from error


def _passages(reply: dict[str, Any]) -> str | None:
    """A digest of what the gateway cites, without what depends on the answer or on other passages of the store."""
    cited = reply.get("citations")
    if not cited:
        return None
    content = json.dumps([[passage.get(part) for part in _PASSAGE_PARTS] for passage in cited], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _text(message: dict[str, Any]) -> str:
    """What an answer is judged by: its tool calls as JSON if it has any, else its content."""
    calls = message.get("tool_calls")
    return calls_json(calls) if calls else message.get("content") or ""


def _is_about_the_question(error: AnswerRefused | AnswerUnreadable) -> bool:
    """Whether the error concerns this question only: the arm may still answer others."""
    return isinstance(error, AnswerUnreadable) or error.status in PER_QUESTION_STATUSES


def _key(request: ArmRequest) -> Key:
    return request.arm.label, request.question.id, request.repeat


def _digest(request: ArmRequest, body: dict[str, Any]) -> str:
    content = json.dumps([request.arm.endpoint, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _answers(answer: Answer | None, request: ArmRequest, body: dict[str, Any]) -> bool:
    """Whether a stored answer belongs to exactly this request: its label may have been reused for another arm."""
    return answer is not None and answer.request == _digest(request, body)
