"""The time to the first token of a rung: what is timed, on which questions, and that a restart times nothing again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import QuietHandler, serving
from tests.unit.trainer.ladder.test_kind import LADDER, LadderRun, ladder
from trainer.errors import GatewayRefused
from trainer.evaluate.arms import ChatMessage, Question
from trainer.ladder import spec
from trainer.ladder.first_token import FirstToken, FirstTokens, first_token, measure_first_tokens
from trainer.ladder.spec import Rung
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway

__all__ = ["ladder"]
PATIENCE_S = 120.0
RUNGS = (Rung(key="base", title="the base", model="tiny"), Rung(key="lora", title="a LoRA", model="support@4"))
QUESTIONS = tuple(
    Question(id=str(number), turns=(ChatMessage(role="user", content=f"question {number}"),), reference="yes")
    for number in range(40)
)


def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
ROLE = chunk(role="assistant", content="")


@dataclass
class Clock:
    """A clock that the server moves; ``read`` is set whenever somebody looks at it."""

    now: float = 100.0
    read: threading.Event = field(default_factory=threading.Event)

    def monotonic(self) -> float:
        now = self.now
        self.read.set()
        return now


@contextmanager
def slow_stream(clock: Clock) -> Iterator[str]:
    """A gateway that sends the role at once, a token 1.5 s later, and the end of the answer 5 s after the request."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            clock.read.clear()
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b": keep-alive\n\n" + ROLE)
            clock.now = 101.5
            self.wfile.write(chunk(content="yes"))
            assert clock.read.wait(PATIENCE_S)
            clock.now = 105.0
            self.wfile.write(chunk(content=" indeed") + END)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_neither_the_role_nor_the_end_of_the_answer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("trainer.runs.gateway.time.monotonic", clock.monotonic)
    with slow_stream(clock) as url:
        gateway = Gateway(url, "key")
        assert gateway.first_token_seconds({"model": "tiny"}) == pytest.approx(1.5)
        gateway.close()


@pytest.mark.parametrize("stream", [ROLE, ROLE + b'data: {"error": {"code": "engine_cut", "message": "cut"}}\n\n'])
def test_an_answer_without_a_token_is_an_error_and_not_a_time(stream: bytes) -> None:
    with serving(lambda *_: (200, stream, {"content-type": "text/event-stream"})) as url:
        gateway = Gateway(url, "key")
        with pytest.raises(GatewayRefused):
            gateway.first_token_seconds({"model": "tiny"})
        gateway.close()


class Stream:
    """A gateway that streams one token; ``refused``: the model that does not answer."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.asked: list[dict[str, Any]] = []

    def answer(self, _method: str, path: str, body: bytes, _key: str) -> tuple[int, bytes, dict[str, str]]:
        assert path == "/v1/chat/completions"
        self.asked.append(json.loads(body))
        if self.asked[-1]["model"] == self.refused:
            return 404, b'{"error": {"code": "model_not_found", "message": "it is gone"}}', {}
        return 200, ROLE + chunk(content="yes") + END, {"content-type": "text/event-stream"}


def measured(ladder: LadderRun, stream: Stream, path: Path) -> FirstTokens:
    with serving(stream.answer) as url, RunDirectory(path) as directory:
        gateway = Gateway(url, "key")
        measure_first_tokens(ladder.spec, RUNGS, QUESTIONS, directory, gateway, lambda: None)
        gateway.close()
        found = directory.read(spec.FIRST_TOKENS, FirstTokens)
        assert found is not None
        return found


def test_every_rung_streams_the_same_few_questions_after_one_that_does_not_count(ladder: LadderRun) -> None:
    stream, path = Stream(), ladder.ladders.path_of(LADDER)
    found = measured(ladder, stream, path)
    texts = {
        model: [ask["messages"][-1]["content"] for ask in stream.asked if ask["model"] == model]
        for model in ("tiny", "support@4")
    }
    assert texts["tiny"] == texts["support@4"]
    turns = [ask["model"] for ask in stream.asked]
    assert turns == ["tiny", "support@4"] * 9, "they take turns: what else the machine does slows both alike"
    assert len(set(texts["tiny"])) == len(texts["tiny"]) == 9, "a question asked twice would be in the engine's cache"
    assert all(ask["stream"] is True and ask["temperature"] == 0 for ask in stream.asked)
    timed = first_token(found, "lora")
    assert timed is not None
    assert timed.requests == 8
    assert 0 < timed.median_seconds <= timed.slowest_seconds
    measured(ladder, stream, path)
    assert len(stream.asked) == 18, "what is timed is not timed again"


def test_a_rung_that_does_not_answer_has_no_time(ladder: LadderRun) -> None:
    found = measured(ladder, Stream(refused="support@4"), ladder.ladders.path_of(LADDER))
    assert first_token(found, "lora") is None
    assert first_token(found, "base") is not None
    assert first_token(None, "base") is None


def test_quick_times_fewer(tmp_path: Path) -> None:
    ladder, stream = LadderRun(tmp_path, quick=True), Stream()
    assert first_token(measured(ladder, stream, ladder.ladders.path_of(LADDER)), "base").requests == 4  # type: ignore[union-attr]


def test_the_median_is_reported_without_the_first() -> None:
    timed = first_token(FirstTokens(seconds={"base": (5.0, 0.9, 0.1, 0.2)}), "base")
    assert timed == FirstToken(median_seconds=0.2, slowest_seconds=0.9, requests=3)
