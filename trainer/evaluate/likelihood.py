"""What a model thinks of a text: the log-probability of each of its tokens, as the engine that serves computes it.

Plain texts go through `/v1/completions`, held-out answers through the chat template, each with `prompt_logprobs`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import BaseModel

from trainer.errors import AnswerRefused, AnswerUnreadable, ArmUnservable, EvaluationInvalid
from trainer.evaluate.answers import Key, RecordFile
from trainer.evaluate.arms import Arm, Frozen, Question
from trainer.evaluate.asking import CHAT_PATH, CONCURRENCY, OnProgress, all_or_first_error
from trainer.evaluate.endpoint_client import Endpoint, EndpointClient
from trainer.runs.gateway import PATIENCE_S

COMPLETIONS_PATH: Final = "/v1/completions"
TOKENIZE_PATH: Final = "/v1/tokenize"


class TokenLogprobs(Frozen):
    """Some tokens in a row, and the natural logarithm of each one's probability after all before it, in nats."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def nats(self) -> float:
        """Mean negative log-probability per token."""
        return -sum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts that are scored in one request; `id` is unique among those that are scored together."""

    id: str
    texts: tuple[str, ...]


class Scorer(Protocol):
    """Gives log-probabilities; `HttpScorer` is the real one. Raises as `Answerer.answer`."""

    async def texts(
        self, arm: Arm, passages: Sequence[TextBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """For each passage, each text's tokens but the first. The arm's prompt plays no part."""
        ...

    async def references(
        self, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
    ) -> list[TokenLogprobs]:
        """For each question, the reference's tokens as the arm would have to say them, without any passages."""
        ...


class ScoredRequest(BaseModel):
    """A request's scores, as they are kept. ``request`` is a digest of all that was asked."""

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
    """Asks the gateway, and keeps what it said in a file. Arguments as `HttpAnswerer`; only for the gateway's arms."""

    def __init__(
        self,
        gateway: Endpoint,
        book: Path,
        *,
        concurrency: int = CONCURRENCY,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._gateway = gateway
        self._book = book
        self._concurrency = concurrency
        self._wait = wait
        self._patience_s = patience_s

    async def texts(
        self, arm: Arm, passages: Sequence[TextBatch], on_progress: OnProgress | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """For each passage, each text's tokens but the first."""
        return await self._scored(arm, [_of_passage(arm, passage) for passage in passages], on_progress)

    async def references(
        self, arm: Arm, held_out: Sequence[Question], on_progress: OnProgress | None = None
    ) -> list[TokenLogprobs]:
        """For each question, the reference's tokens after the arm's prompt, without any passages."""
        jobs = [_of_reference(arm, question) for question in held_out]
        return [rows[0] for rows in await self._scored(arm, jobs, on_progress)]

    async def _scored(
        self, arm: Arm, jobs: Sequence[_ScoreRequest], on_progress: OnProgress | None
    ) -> list[tuple[TokenLogprobs, ...]]:
        if arm.endpoint is not None:
            raise EvaluationInvalid(
                f"{arm.label!r} is an outside endpoint: those give no log-probabilities of a prompt"
            )
        with RecordFile(self._book, ScoredRequest) as book:
            requests = {job.example: _digest(job.body) for job in jobs}
            keys: list[Key] = [(arm.label, job.example, 0) for job in jobs]
            there = [key in book.found and book.found[key].request == requests[key[1]] for key in keys]
            done = sum(there)
            if on_progress is not None:
                on_progress(done, len(jobs))
            todo = iter([job for job, known in zip(jobs, there, strict=True) if not known])
            wire = EndpointClient(
                self._gateway, connections=self._concurrency, wait=self._wait, patience_s=self._patience_s
            )

            async def work() -> None:
                nonlocal done
                for job in todo:
                    rows = await _score_for_arm(arm, job, wire)
                    book.add(
                        ScoredRequest(arm=arm.label, example=job.example, request=requests[job.example], rows=rows)
                    )
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(jobs))

            try:
                await all_or_first_error(work() for _ in range(min(self._concurrency, len(jobs) - done)))
            finally:
                await wire.close()
            return [book.found[key].rows for key in keys]


async def _score_for_arm(arm: Arm, job: _ScoreRequest, wire: EndpointClient) -> tuple[TokenLogprobs, ...]:
    try:
        return await job.ask(wire)
    except AnswerRefused as error:
        kind = ArmUnservable if isinstance(error, ArmUnservable) else AnswerRefused
        message = f"{arm.label!r} ({arm.model}) did not score {job.example}: {error.message}"
        raise kind(error.status, error.answer_code, message) from error


def _of_passage(arm: Arm, passage: TextBatch) -> _ScoreRequest:
    body = {
        "model": arm.model,
        "prompt": list(passage.texts),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }

    async def ask(wire: EndpointClient) -> tuple[TokenLogprobs, ...]:
        found, _ = await wire.post(COMPLETIONS_PATH, body)
        try:
            choices = sorted(found["choices"], key=lambda choice: int(choice["index"]))
            rows = tuple(_row(choice["prompt_logprobs"][1:]) for choice in choices)
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerUnreadable(f"no log-probabilities for {passage.id}") from error
        if len(rows) != len(passage.texts):
            raise AnswerUnreadable(f"{len(rows)} answers to the {len(passage.texts)} texts of {passage.id}")
        return rows

    return _ScoreRequest(passage.id, body, ask)


def _of_reference(arm: Arm, question: Question) -> _ScoreRequest:
    messages = arm.prompt.messages(question)
    prompt = {"model": arm.model, "messages": messages, "add_generation_prompt": True}
    body = {
        "model": arm.model,
        "messages": [*messages, {"role": "assistant", "content": question.reference.strip()}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        # passages, marked anew each time, would stand in the one prompt and not in the other
        "grounding": False,
    }

    async def ask(wire: EndpointClient) -> tuple[TokenLogprobs, ...]:
        before, _ = await wire.post(TOKENIZE_PATH, prompt)
        found, _ = await wire.post(CHAT_PATH, body)
        try:
            whole, start = _row(found["prompt_logprobs"][1:]), [int(token) for token in before["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerUnreadable(f"no log-probabilities for example {question.id}") from error
        said = common_prefix(start[1:], whole.tokens)
        if said == len(whole.tokens):
            raise AnswerUnreadable(f"the prompt of example {question.id} does not end with its answer")
        return (TokenLogprobs(tokens=whole.tokens[said:], logprobs=whole.logprobs[said:]),)

    return _ScoreRequest(f"reference/{question.id}", body, ask)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def _row(positions: Sequence[dict[str, dict[str, Any]]]) -> TokenLogprobs:
    """vLLM's `prompt_logprobs: 0`: at each place one entry, the prompt's own token."""
    tokens, logprobs = [], []
    for position in positions:
        ((token, entry),) = position.items()
        value = float(entry["logprob"])
        if not math.isfinite(value):
            raise ValueError("a log-probability that is not finite")
        tokens.append(int(token))
        logprobs.append(value)
    return TokenLogprobs(tokens=tuple(tokens), logprobs=tuple(logprobs))


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
