"""Log-probabilities of the tokens of a text, as the serving engine computes them.

Plain texts go through `/v1/completions`, held-out answers through the chat template, each with `prompt_logprobs`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel

from trainer.errors import AnswerRefused, AnswerUnreadable, ArmUnservable, EvaluationInvalid
from trainer.evaluate.answers import Key, RecordFile
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.asking import CHAT_PATH, CONCURRENCY, OnProgress, all_or_first_error
from trainer.evaluate.endpoint_client import Endpoint, EndpointClient
from trainer.runs.gateway import PATIENCE_S
from trainer.runs.protocol import Frozen

COMPLETIONS_PATH: Final = "/v1/completions"
TOKENIZE_PATH: Final = "/v1/tokenize"


class TokenLogprobs(Frozen):
    """Consecutive tokens, and for each the log-probability (nats) given everything before it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def nats(self) -> float:
        """Mean negative log-probability per token."""
        return -sum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts scored in one request; ``id`` is unique among the batches scored together."""

    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplyBatch:
    """A question in a chat and replies to it; ``id`` is unique among the batches scored together.

    The question's reference is not used.
    """

    id: str
    question: Question
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContinuationBatch:
    """A text and what may follow it; ``id`` is unique among the batches scored together."""

    id: str
    context: str
    continuations: tuple[str, ...]


class Scorer(Protocol):
    """Returns log-probabilities; implemented by `HttpScorer`. Raises as `Answerer.answer`."""

    async def texts(
        self, arm: Arm, batches: Sequence[TextBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """For each batch and text, all tokens but the first. The arm's prompt is not used."""
        ...

    async def continuations(
        self, arm: Arm, batches: Sequence[ContinuationBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """For each batch and continuation, its tokens after the context. The arm's prompt is not used."""
        ...

    async def references(
        self, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
    ) -> list[TokenLogprobs]:
        """For each question, the reference's tokens after the arm's prompt, without grounding."""
        ...

    async def replies(
        self, arm: Arm, batches: Sequence[ReplyBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """For each batch and reply, the reply's tokens after the arm's prompt and the question, without grounding.

        Tokens that all replies of a batch begin with may be missing.
        """
        ...


class ScoredRequest(BaseModel):
    """A request's scores as stored. ``request``: a digest of the whole request."""

    arm: str
    example: str
    request: str
    rows: tuple[TokenLogprobs, ...]

    @property
    def key(self) -> Key:
        """See `answers.Key`."""
        return self.arm, self.example, 0


@dataclass(frozen=True, slots=True)
class _ScoreRequest:
    example: str
    body: dict[str, Any]
    ask: Callable[[EndpointClient], Awaitable[tuple[TokenLogprobs, ...]]]


class HttpScorer:
    """Asks the gateway and stores the scores in a file. Arguments as `HttpAnswerer`; only for the gateway's arms."""

    def __init__(
        self,
        gateway: Endpoint,
        path: Path,
        *,
        template_switches: Mapping[str, bool] | None = None,
        concurrency: int = CONCURRENCY,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._gateway = gateway
        self._path = path
        self._template_switches = {**(template_switches or {})}
        self._concurrency = concurrency
        self._wait = wait
        self._patience_s = patience_s

    async def texts(
        self, arm: Arm, batches: Sequence[TextBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """See `Scorer`."""
        return await self._score(arm, [_batch_request(arm, batch) for batch in batches], on_progress)

    async def continuations(
        self, arm: Arm, batches: Sequence[ContinuationBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """See `Scorer`."""
        return await self._score(arm, [_continuation_request(arm, batch) for batch in batches], on_progress)

    async def references(
        self, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
    ) -> list[TokenLogprobs]:
        """See `Scorer`."""
        requests = [_reference_request(arm, question, self._template_switches) for question in held_out]
        return [rows[0] for rows in await self._score(arm, requests, on_progress)]

    async def replies(
        self, arm: Arm, batches: Sequence[ReplyBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """See `Scorer`."""
        requests = [_replies_request(arm, batch, self._template_switches) for batch in batches]
        return await self._score(arm, requests, on_progress)

    async def _score(
        self, arm: Arm, requests: Sequence[_ScoreRequest], on_progress: OnProgress | None
    ) -> list[tuple[TokenLogprobs, ...]]:
        if arm.endpoint is not None:
            raise EvaluationInvalid(
                f"{arm.label!r} is at an outside endpoint, which returns no log-probabilities of a prompt"
            )
        with RecordFile(self._path, ScoredRequest) as record_file:
            digests = {request.example: _digest(request.body) for request in requests}
            keys: list[Key] = [(arm.label, request.example, 0) for request in requests]
            is_known = [
                key in record_file.records and record_file.records[key].request == digests[key[1]] for key in keys
            ]
            done = sum(is_known)
            if on_progress is not None:
                on_progress(done, len(requests))
            pending = iter(
                [request for request, done_before in zip(requests, is_known, strict=True) if not done_before]
            )
            client = EndpointClient(
                self._gateway, connections=self._concurrency, wait=self._wait, patience_s=self._patience_s
            )

            async def work() -> None:
                nonlocal done
                for request in pending:
                    rows = await _score_for_arm(arm, request, client)
                    record_file.add(
                        ScoredRequest(
                            arm=arm.label, example=request.example, request=digests[request.example], rows=rows
                        )
                    )
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(requests))

            try:
                await all_or_first_error(work() for _ in range(min(self._concurrency, len(requests) - done)))
            finally:
                await client.close()
            return [record_file.records[key].rows for key in keys]


async def _score_for_arm(arm: Arm, request: _ScoreRequest, client: EndpointClient) -> tuple[TokenLogprobs, ...]:
    try:
        return await request.ask(client)
    except AnswerRefused as error:
        kind = ArmUnservable if isinstance(error, ArmUnservable) else AnswerRefused
        message = f"{arm.label!r} ({arm.model}) did not score {request.example}: {error.message}"
        raise kind(error.status, error.answer_code, message) from error


def _batch_request(arm: Arm, batch: TextBatch) -> _ScoreRequest:
    body = {
        "model": arm.model,
        "prompt": list(batch.texts),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }

    async def ask(client: EndpointClient) -> tuple[TokenLogprobs, ...]:
        reply, _ = await client.post(COMPLETIONS_PATH, body)
        try:
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            rows = tuple(_row(choice["prompt_logprobs"][1:]) for choice in choices)
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerUnreadable(f"no log-probabilities for {batch.id}") from error
        if len(rows) != len(batch.texts):
            raise AnswerUnreadable(f"{len(rows)} results for the {len(batch.texts)} texts of {batch.id}")
        return rows

    return _ScoreRequest(batch.id, body, ask)


def _continuation_request(arm: Arm, batch: ContinuationBatch) -> _ScoreRequest:
    """Continuations of one token each are read off what follows the context. So it is read once, and not once for each,
    and its beginning may come from the cache, which nothing does where a prompt's own log-probabilities are wanted."""
    whole = TextBatch(batch.id, (batch.context, *(batch.context + text for text in batch.continuations)))

    async def ask(client: EndpointClient) -> tuple[TokenLogprobs, ...]:
        try:
            stem, *others = [await _tokens(arm, text, client) for text in whole.texts]
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerUnreadable(f"no tokens for {batch.id}") from error
        if all(len(other) == len(stem) + 1 and other[:-1] == stem for other in others):
            try:
                return await _next_tokens(arm, batch, [other[-1] for other in others], client)
            except ArmUnservable:
                raise
            except AnswerRefused:
                pass  # more than the gateway's `HATRACK_MAX_LOGPROBS`, or an engine that cannot
        stem_row, *rows = await _batch_request(arm, whole).ask(client)
        return tuple(_after(row, common_prefix(stem_row.tokens, row.tokens)) for row in rows)

    body = {"model": arm.model, "context": batch.context, "continuations": batch.continuations}
    return _ScoreRequest(batch.id, body, ask)


async def _tokens(arm: Arm, text: str, client: EndpointClient) -> list[int]:
    reply, _ = await client.post(TOKENIZE_PATH, {"model": arm.model, "prompt": text})
    return [int(token) for token in reply["tokens"]]


async def _next_tokens(
    arm: Arm, batch: ContinuationBatch, tokens: Sequence[int], client: EndpointClient
) -> tuple[TokenLogprobs, ...]:
    """The log-probability of each of the tokens right after the context, before any sampling setting."""
    body = {
        "model": arm.model,
        "prompt": batch.context,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 0,
        "logprob_token_ids": list(dict.fromkeys(tokens)),
        "return_tokens_as_token_ids": True,
    }
    reply, _ = await client.post(COMPLETIONS_PATH, body)
    try:
        (following,) = reply["choices"][0]["logprobs"]["top_logprobs"]
        found = [float(following[f"token_id:{token}"]) for token in tokens]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AnswerUnreadable(f"no log-probabilities for {batch.id}") from error
    if not all(map(math.isfinite, found)):
        raise AnswerUnreadable(f"a log-probability for {batch.id} is not finite")
    return tuple(TokenLogprobs(tokens=(token,), logprobs=(value,)) for token, value in zip(tokens, found, strict=True))


def _prompt_body(arm: Arm, question: Question, switches: Mapping[str, bool]) -> dict[str, Any]:
    """The fields that a prompt is rendered from."""
    return {
        "model": arm.model,
        "messages": arm.prompt.messages(question),
        **({"tools": list(question.tools)} if question.tools else {}),
        **({"chat_template_kwargs": {**switches}} if switches else {}),
    }


def _reply_body(arm: Arm, question: Question, reply: str, switches: Mapping[str, bool]) -> dict[str, Any]:
    """A chat that ends with a reply, whose prompt's log-probabilities are wanted."""
    answer = question.answer.sent() if question.reference_calls else {"role": "assistant", "content": reply}
    body = _prompt_body(arm, question, switches)
    return {
        **body,
        "messages": [*body["messages"], answer],
        "add_generation_prompt": False,
        # tool calls cannot be continued: they are scored with the token that ends the turn, under every arm alike
        "continue_final_message": not question.reference_calls,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        # passages would be in one of two prompts only, with different delimiters each time
        "grounding": False,
    }


def _replies_request(arm: Arm, batch: ReplyBatch, switches: Mapping[str, bool]) -> _ScoreRequest:
    bodies = [_reply_body(arm, batch.question, reply, switches) for reply in batch.replies]

    async def ask(client: EndpointClient) -> tuple[TokenLogprobs, ...]:
        rows = []
        for body in bodies:
            reply, _ = await client.post(CHAT_PATH, body)
            try:
                rows.append(_row(reply["prompt_logprobs"][1:]))
            except (KeyError, TypeError, ValueError) as error:
                raise AnswerUnreadable(f"no log-probabilities for {batch.id}") from error
        prompt_length = common_prefix(*(row.tokens for row in rows))
        return tuple(_after(row, prompt_length) for row in rows)

    return _ScoreRequest(batch.id, {"chats": bodies}, ask)


def _reference_request(arm: Arm, question: Question, switches: Mapping[str, bool]) -> _ScoreRequest:
    prompt = {**_prompt_body(arm, question, switches), "add_generation_prompt": True}
    body = _reply_body(arm, question, question.reference.strip(), switches)

    async def ask(client: EndpointClient) -> tuple[TokenLogprobs, ...]:
        prompt_reply, _ = await client.post(TOKENIZE_PATH, prompt)
        reply, _ = await client.post(CHAT_PATH, body)
        try:
            scored, prompt_tokens = _row(reply["prompt_logprobs"][1:]), [int(token) for token in prompt_reply["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerUnreadable(f"no log-probabilities for example {question.id}") from error
        prompt_length = common_prefix(prompt_tokens[1:], scored.tokens)
        if prompt_length == len(scored.tokens):
            raise AnswerUnreadable(f"the prompt of example {question.id} does not end with its answer")
        return (_after(scored, prompt_length),)

    return _ScoreRequest(f"reference/{question.id}", body, ask)


def common_prefix(*rows: Sequence[int]) -> int:
    """The length of the common prefix of one or more rows."""
    return next(
        (index for index, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows))
    )


def _after(row: TokenLogprobs, length: int) -> TokenLogprobs:
    """The row without its first tokens."""
    return TokenLogprobs(tokens=row.tokens[length:], logprobs=row.logprobs[length:])


def _row(positions: Sequence[dict[str, dict[str, Any]]]) -> TokenLogprobs:
    """Parse vLLM's `prompt_logprobs: 0`: one entry per position, the prompt's own token."""
    tokens, logprobs = [], []
    for position in positions:
        ((token, entry),) = position.items()
        value = float(entry["logprob"])
        if not math.isfinite(value):
            raise ValueError("a log-probability is not finite")
        tokens.append(int(token))
        logprobs.append(value)
    return TokenLogprobs(tokens=tuple(tokens), logprobs=tuple(logprobs))


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
