"""A fake gateway on a real socket, whose tokens are words: it answers chats, scores texts and records its requests."""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.http import serving

KEY = "hk_job"
Refusal = tuple[int, str, dict[str, str]]
"""Status, error code, headers."""


def pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def token(piece: str) -> int:
    return zlib.crc32(piece.encode()) % 50_000


def rendered(messages: list[dict[str, str]]) -> str:
    return "".join(f" <{turn['role']}> {turn['content']}" for turn in messages)


@dataclass
class Gateway:
    """What each model says, what it finds likely, and what is refused."""

    say: Callable[[str, str], str] = lambda model, asked: f"{model} says {asked}"
    cites: Callable[[str, str], list[dict[str, Any]]] = lambda model, asked: []
    """The passages that each model's answer cites."""
    likely: dict[str, set[str]] = field(default_factory=dict)
    """Per model the words that cost it 0.1 nats; all others cost 5."""
    likely_in_chats: dict[str, set[str]] = field(default_factory=dict)
    """The same for replies in chats, if a model finds others likely there."""
    refusals: list[Refusal] = field(default_factory=list)
    """The next answers, whatever is asked."""
    refused_models: dict[str, Refusal] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    """Per model the digests that it is served by, in turn."""
    raw: dict[str, Any] | None = None
    """The next answers' body, whatever is asked."""
    delay_s: float = 0.0
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    spelled: dict[int, str] = field(default_factory=dict)
    """The words of tokens that it was asked for."""
    no_token_ids: bool = False
    """Whether it gives no log-probabilities of chosen tokens."""
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any], key: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        with self.lock:
            self.requests.append((path, body))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            refusal = self.refusals.pop(0) if self.refusals else self.refused_models.get(body["model"])
        try:
            time.sleep(self.delay_s)
            if key != KEY:
                refusal = 401, "invalid_api_key", {}
            if self.no_token_ids and "logprob_token_ids" in body:
                refusal = 400, "invalid_value", {}
            if refusal is not None:
                status, code, headers = refusal
                error = {"message": f"refused: {code}", "type": "t", "param": None, "code": code}
                return status, {"error": error}, headers
            if self.raw is not None:
                return 200, self.raw, {}
            return 200, *self._answered(path, body)
        finally:
            with self.lock:
                self.at_once -= 1

    def _answered(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        model = body["model"]
        if path == "/v1/tokenize" and "prompt" in body:
            self.spelled |= {token(piece): piece for piece in pieces(body["prompt"])}
            return {"tokens": [token(piece) for piece in pieces(body["prompt"])]}, {}
        if path == "/v1/tokenize":
            return {"tokens": [token(piece) for piece in pieces(rendered(body["messages"]) + " <assistant>")]}, {}
        if path == "/v1/completions" and "logprob_token_ids" in body:
            following = {}
            for each in body["logprob_token_ids"]:
                last = self._scores(model, body["prompt"] + self.spelled[each])[-1] or {}
                following[f"token_id:{each}"] = last[str(each)]["logprob"]
            return {"choices": [{"index": 0, "logprobs": {"top_logprobs": [following]}}]}, {}
        if path == "/v1/completions":
            rows = [self._scores(model, text) for text in body["prompt"]]
            return {"choices": [{"index": at, "prompt_logprobs": row} for at, row in enumerate(rows)][::-1]}, {}
        if body.get("continue_final_message"):
            likely = self.likely_in_chats.get(model)
            return {"prompt_logprobs": self._scores(model, rendered(body["messages"]), likely)}, {}
        text = self.say(model, body["messages"][-1]["content"])
        reason = "length" if len(text) > 40 else "stop"
        headers = {}
        if self.digests.get(model):
            with self.lock:
                digest = self.digests[model][0]
                self.digests[model].append(self.digests[model].pop(0))
            headers = {"x-hatrack-adapter": f"{model.partition('@')[0]}@{digest}", "x-hatrack-digest": digest}
        cited = self.cites(model, body["messages"][-1]["content"])
        return {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
            **({"citations": cited} if cited else {}),
        }, headers

    def _scores(self, model: str, text: str, likely: set[str] | None = None) -> list[dict[str, Any] | None]:
        likely = self.likely.get(model, set()) if likely is None else likely
        cost = [0.1 if piece.strip() in likely else 5.0 for piece in pieces(text)]
        scores = [
            {str(token(piece)): {"logprob": -nats, "rank": 1, "decoded_token": piece}}
            for piece, nats in zip(pieces(text), cost, strict=True)
        ]
        return [None, *scores[1:]]

    def asked(self) -> list[tuple[str, str]]:
        """Model and last message of every chat, in order."""
        return [
            (body["model"], body["messages"][-1]["content"])
            for path, body in self.requests
            if path == "/v1/chat/completions"
        ]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    fake = Gateway()

    def answer(method: str, path: str, body: bytes, key: str) -> tuple[int, bytes, dict[str, str]]:
        if method != "POST":
            return 501, b"", {}
        status, content, headers = fake.answer(path, json.loads(body), key)
        return status, json.dumps(content).encode(), headers

    with serving(answer) as fake.url:
        yield fake
