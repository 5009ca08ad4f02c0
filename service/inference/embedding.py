"""`POST /v1/embeddings` by the embedder: a model beside the base, with fields, a process and a queue of its own.

The pipeline hands such a request over once it knows whose it is and which model it names. Retrieval asks the same
process by another way (`service.knowledge`): it passes no queue and goes first there.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from service.access.caller import Caller
from service.access.limits import Reservation
from service.admission.estimate import BYTES_PER_TOKEN
from service.admission.ports import Permit, Queue
from service.admission.request import AdmissionRequest
from service.config import Settings
from service.errors import NotFound, Unavailable
from service.http.stream import TokenUsage
from service.inference.exchange import Exchange
from service.inference.fields import MAX_INPUTS, Table, check_body, embeddings_table, passed, refused
from service.inference.relay import EMBEDDINGS
from service.inference.values import plain_texts
from service.registry.catalog import Target
from service.telemetry.record import Record


def embedder_table(settings: Settings) -> Table:
    """The fields of a request to the embedder; `dimensions` is for the model to judge."""
    return {
        **embeddings_table(settings),
        **passed(input=plain_texts(MAX_INPUTS)),
        **refused("a text that is too long is refused, never cut", "truncate_prompt_tokens", "truncation_side"),
        **refused("the embedding model has no such choice", "add_special_tokens", "use_activation"),
    }


class Embedder(Protocol):
    """`service.knowledge.embeddings.Embedder`, which this room must not know."""

    async def inputs(self, texts: list[str], **options: Any) -> tuple[bytes, int]:
        """The JSON for the caller, and the number of tokens.

        Raises:
            Unavailable: Nothing was embedded.
            HatrackError: The request is refused, or failed.
        """


class EmbeddingRequests:
    """Answers requests to the embedder.

    Args:
        queue: Fair admission to it.
    """

    def __init__(self, settings: Settings, embedder: Embedder, queue: Queue) -> None:
        self._embedder = embedder
        self._queue = queue
        self._base_name = settings.base_served_name
        self._table = embedder_table(settings)
        self._timeout_s = settings.request_timeout_s
        self._queue_timeout_s = settings.queue_timeout_s

    def check(self, path: str, target: Target, body: dict[str, Any]) -> None:
        """Refuse what the embedder need not be asked for.

        Raises:
            NotFound: It wants something other than embeddings.
            HatrackError: A field is not valid.
        """
        if path != EMBEDDINGS:
            raise NotFound(
                f"`{target.label}` is an embedding model, which only answers POST {EMBEDDINGS}; ask "
                f"`{self._base_name}` or an adapter (those in GET /v1/models whose `type` is `chat`)",
                param="model",
                code="model_only_embeds",
            )
        # nothing lets unknown fields pass: there is no engine behind this that may know them
        check_body(body, self._table, ("input",), pass_unknown=False)

    async def answer(
        self,
        exchange: Exchange,
        caller: Caller,
        target: Target,
        record: Record,
        body: dict[str, Any],
        reservation: Reservation | None,
        began: float,
    ) -> None:
        """Answer one request.

        Args:
            target: The embedder.
            body: The request without `model`, not checked yet.
            began: Its arrival, on the performance counter.

        Raises:
            NotFound: It wants something other than embeddings.
            HatrackError: It is not valid, over a limit, or cannot be answered.
        """
        self.check(exchange.path, target, body)
        given = body["input"]
        texts = [given] if isinstance(given, str) else given
        size = sum(len(text.encode()) for text in texts)
        record.estimate = record.prompt = max(len(texts), size // BYTES_PER_TOKEN)
        if reservation is not None:
            if (charged := reservation.charge(record.estimate)) is not None:
                await charged
            exchange.add_headers(reservation.headers())
        async with exchange.cancel_on_disconnect(self._timeout_s):
            permit = await self._enter(caller, record)
            try:
                options = {"model": target.label, "single": texts is not given, "dimensions": body.get("dimensions")}
                options["base64"] = body.get("encoding_format") == "base64"
                record.sent_s = time.perf_counter() - began
                answer = await self._embed(record, texts, options)
                record.first_byte_s = time.perf_counter() - began
            finally:
                permit.leave(record.tokens, answered=record.reached)
            await exchange.answer(200, answer)

    async def _enter(self, caller: Caller, record: Record) -> Permit:
        """Wait for a place in the embedder."""
        clock = asyncio.get_running_loop().time
        arrived = clock()
        request = AdmissionRequest(
            caller.project, caller.key_id, None, record.estimate, caller.background, record.prompt
        )
        try:
            return await self._queue.enter(request, arrived + self._queue_timeout_s)
        finally:
            record.queue_s = clock() - arrived

    async def _embed(self, record: Record, texts: list[str], options: dict[str, Any]) -> bytes:
        """Ask the embedder; what it was sent is charged, even if the client leaves or the texts are refused."""
        record.fallback_tokens = record.estimate
        try:
            answer, tokens = await self._embedder.inputs(texts, **options)
        except Unavailable:
            record.fallback_tokens = None
            raise
        record.reached, record.usage = True, TokenUsage(prompt_tokens=tokens)
        return answer
