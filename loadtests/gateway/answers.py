"""What the fake engine says: vLLM's answers to chat and text completions as bytes, made once for each model name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MODELS_KEPT = 64
CREATED = 1767225600
ID = "chatcmpl-7d1f0a64c0f14e1f8f5d2a9e4b1c3d5e"
PROMPT_TOKENS = 42
ANSWER = (
    "Your parcel left our warehouse this morning and should be with you within two working days. "
    "You will get a message with the courier's name as soon as it is on the van. "
    "If it has not come by then, write to us and we send another at no cost."
)
WORDS = (" the", " parcel", " is", " on", " its", " way", " and", " should")


def plain_answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    """A whole HTTP response."""
    reason = {200: "OK", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def json_answer(value: Any, status: int = 200) -> bytes:
    """A whole HTTP response of JSON, written as vLLM writes it: without spaces."""
    return plain_answer(status, json.dumps(value, separators=(",", ":")).encode())


@lru_cache(maxsize=MODELS_KEPT)
def chat_answer(model: str) -> bytes:
    """The HTTP response to a chat completion that does not stream."""
    return json_answer(
        {
            "id": ID,
            "object": "chat.completion",
            "created": CREATED,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": ANSWER,
                        "refusal": None,
                        "annotations": None,
                        "audio": None,
                        "function_call": None,
                        "tool_calls": [],
                        "reasoning": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                    "stop_reason": None,
                    "token_ids": None,
                }
            ],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": usage(64),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }
    )


def usage(completion_tokens: int) -> dict[str, Any]:
    """vLLM's usage object."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
    }


@lru_cache(maxsize=MODELS_KEPT)
def chat_events(model: str, tokens: int, with_usage: bool) -> tuple[bytes, ...]:
    """The response to a streamed chat completion in the pieces that vLLM sends, each an HTTP chunk of its own.

    The first piece has the response's head and the event with the role, then one event for each of ``tokens`` tokens,
    then the end.
    """
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"x-request-id: none\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    pieces = [head + _event(model, [_delta({"role": "assistant", "content": ""})])]
    pieces += [_event(model, [_delta({"content": WORDS[number % len(WORDS)]})]) for number in range(tokens - 1)]
    last = _event(model, [_delta({"content": "."}, finish_reason="length")])
    if with_usage:
        last += _event(model, [], usage=usage(tokens))
    return (*pieces, last + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "index": 0,
        "delta": delta,
        "logprobs": None,
        "finish_reason": finish_reason,
        "token_ids": None,
    }


def _event(model: str, choices: Sequence[dict[str, Any]], **more: Any) -> bytes:
    event = {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": list(choices),
        **more,
    }
    return _chunk(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def logprobs_answer(request: dict[str, Any]) -> bytes:
    """The response to the question for a prompt's log-probabilities, by which a gateway looks whether an adapter acts.

    Each word stands for a token. What an adapter changes is made up and steady, whatever else is in the batch: enough
    for a proof of effect.
    """
    model = str(request["model"])
    shift = 0.0 if len(model) != 64 else 0.7 + int(model[:2], 16) / 1000
    prompts = request["prompt"] if isinstance(request["prompt"], list) else [request["prompt"]]
    choices = []
    for index, prompt in enumerate(prompts):
        rows: list[Any] = [None]
        for position, word in enumerate(str(prompt).split()[1:]):
            value = -2.0 - (len(word) * 7 + position) % 5 / 4 - shift * (position % 3) / 2
            entry = {"logprob": value, "rank": 1, "decoded_token": word}
            rows.append({str(1000 + position): entry})
        choices.append({"index": index, "text": ".", "finish_reason": "length", "prompt_logprobs": rows})
    return json_answer(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": CREATED,
            "model": model,
            "choices": choices,
            "usage": usage(1),
        }
    )


def tokens_answer(request: dict[str, Any]) -> bytes:
    """The response to the question for a prompt's tokens; each word stands for one."""
    tokens = [_token(word) for word in _words(request)]
    return json_answer({"count": len(tokens), "max_model_len": 4096, "tokens": tokens})


def chat_logprobs_answer(request: dict[str, Any]) -> bytes:
    """The response to a chat completion that also asks for its prompt's log-probabilities."""
    answer = json.loads(chat_answer(str(request["model"])).partition(b"\r\n\r\n")[2])
    rows = [
        {str(_token(word)): {"logprob": -1.0 - len(word) % 5 / 4, "rank": 1, "decoded_token": word}}
        for word in _words(request)
    ]
    return json_answer({**answer, "prompt_logprobs": [None, *rows[1:]]})


def _words(request: dict[str, Any]) -> list[str]:
    """The words of a prompt or of a chat, of which one with a further message is a continuation."""
    if "prompt" in request:
        return str(request["prompt"]).split()
    return " ".join(str(message["content"]) for message in request["messages"]).split()


def _token(word: str) -> int:
    return zlib.crc32(word.encode()) % 2**31
