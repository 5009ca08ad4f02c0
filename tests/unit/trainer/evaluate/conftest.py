"""A gateway of words on a real socket: it answers chats, scores texts and counts what it is asked."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.http import QuietHandler

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
    likely: dict[str, set[str]] = field(default_factory=dict)
    """Per model the words that cost it 0.1 nats; all others cost 5."""
    refusals: list[Refusal] = field(default_factory=list)
    """The next answers, whatever is asked."""
    refused_models: dict[str, Refusal] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    """Per model the digests that it is served by, in turn."""
    raw: dict[str, Any] | None = None
    """The next answers' body, whatever is asked."""
    delay_s: float = 0.0
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
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
        if path == "/v1/tokenize":
            return {"tokens": [token(piece) for piece in pieces(rendered(body["messages"]) + " <assistant>")]}, {}
        if path == "/v1/completions":
            rows = [self._scores(model, text) for text in body["prompt"]]
            return {"choices": [{"index": at, "prompt_logprobs": row} for at, row in enumerate(rows)][::-1]}, {}
        if body.get("continue_final_message"):
            return {"prompt_logprobs": self._scores(model, rendered(body["messages"]))}, {}
        text = self.say(model, body["messages"][-1]["content"])
        reason = "length" if len(text) > 40 else "stop"
        headers = {}
        if self.digests.get(model):
            with self.lock:
                digest = self.digests[model][0]
                self.digests[model].append(self.digests[model].pop(0))
            headers = {"x-hatrack-adapter": f"{model.partition('@')[0]}@{digest}", "x-hatrack-digest": digest}
        return {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }, headers

    def _scores(self, model: str, text: str) -> list[dict[str, Any] | None]:
        likely = self.likely.get(model, set())
        cost = [0.1 if piece.strip() in likely else 5.0 for piece in pieces(text)]
        found = [
            {str(token(piece)): {"logprob": -nats, "rank": 1, "decoded_token": piece}}
            for piece, nats in zip(pieces(text), cost, strict=True)
        ]
        return [None, *found[1:]]

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

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, found, headers = fake.answer(self.path, body, key)
            content = json.dumps(found).encode()
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # whoever asked was killed

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # five are too few for all that ask at once while this thread waits for a core

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # that is whoever was killed
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()
