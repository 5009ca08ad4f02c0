"""A fake engine without delay: speaks vLLM's wire format from bytes made beforehand, many times faster than a gateway.

    python -m loadtests.gateway.upstream --port 9000 --plugin report.json

It answers what a gateway asks an engine: chat completions, streaming or not, the log-probabilities and the tokens of a
prompt, the models, health, and the plugin's report. A stream sends its first event at once; the others follow in steps,
one event for every stream that is open, as an engine that decodes a batch does. ``PUT /pace/<milliseconds>`` sets the
time between two steps; with 0 one step follows another as fast as the event loop turns. ``PUT /sequences/<n>`` lets at
most n streams decode at once (vLLM's `max_num_seqs`); the others wait, and a stream's first event then comes with a
step, too. ``GET /load`` tells how many streams decode and wait.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import uvloop

from loadtests.gateway.answers import (
    chat_answer,
    chat_events,
    chat_logprobs_answer,
    json_answer,
    logprobs_answer,
    plain_answer,
    tokens_answer,
)

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model": ?"([^"\\]+)"')
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_LOGPROBS = re.compile(rb'"prompt_logprobs": ?\d')
_MOST_TOKENS = 4096


class Decoder:
    """Hands every open stream its next event, once a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[Connection, Iterator[bytes]] = {}
        self._waiting: dict[Connection, Iterator[bytes]] = {}
        self._running = False
        self.pace_s = 0.0
        self.max_sequences: int | None = None
        """Streams that decode at once; None: any number, and each sends its first event at once."""

    @property
    def streams(self) -> int:
        """Streams that are open, the waiting ones too."""
        return len(self._open) + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Streams that wait for their turn to decode."""
        return len(self._waiting)

    def begin(self, connection: Connection, events: Iterator[bytes]) -> None:
        """Send the first event now, or when there is a place, and the rest in the steps to come."""
        if self.max_sequences is None:
            connection.send(next(events))
            self._open[connection] = events
        else:
            self._waiting[connection] = events
        if not self._running:
            self._running = True
            self._later()

    def forget(self, connection: Connection) -> None:
        """Its client has gone."""
        self._open.pop(connection, None)
        self._waiting.pop(connection, None)

    def _later(self) -> None:
        if self.pace_s:
            self._loop.call_later(self.pace_s, self._step)
        else:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        while self._waiting and (self.max_sequences is None or len(self._open) < self.max_sequences):
            oldest = next(iter(self._waiting))
            self._open[oldest] = self._waiting.pop(oldest)
        for connection, events in tuple(self._open.items()):
            event = next(events, None)
            if event is None:
                del self._open[connection]
            else:
                connection.send(event)
        self._running = self.streams > 0
        if self._running:
            self._later()


class Connection(asyncio.Protocol):
    """One client's connection: requests in, answers out, in order."""

    def __init__(self, decoder: Decoder, report: bytes) -> None:
        self._decoder = decoder
        self._report = report
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.send = cast(asyncio.Transport, transport).write

    def connection_lost(self, exc: Exception | None) -> None:
        self._decoder.forget(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while True:
            end = buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                break
            length = _LENGTH.search(buffer, 0, end)
            whole = end + (int(length[1]) if length else 0)
            if len(buffer) < whole:
                break
            self._answer(buffer[:end], buffer[end:whole])
            buffer = buffer[whole:]
        self._buffer = buffer

    def _answer(self, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b" ", 2)
        if method == b"POST" and target == b"/v1/chat/completions":
            self._chat(body)
        elif method == b"POST" and target == b"/v1/completions":
            self.send(logprobs_answer(json.loads(body)))
        elif method == b"POST" and target == b"/tokenize":
            self.send(tokens_answer(json.loads(body)))
        else:
            self.send(self._control(target.partition(b"?")[0].decode()))

    def _chat(self, body: bytes) -> None:
        if _LOGPROBS.search(body):
            self.send(chat_logprobs_answer(json.loads(body)))
            return
        named = _MODEL.search(body)
        model = named[1].decode() if named else "none"
        if not _STREAM.search(body):
            self.send(chat_answer(model))
            return
        wanted = _TOKENS.search(body)
        tokens = min(int(wanted[1]), _MOST_TOKENS) if wanted else 64
        self._decoder.begin(self, iter(chat_events(model, tokens, _USAGE.search(body) is not None)))

    def _control(self, path: str) -> bytes:
        if path.startswith("/pace/"):
            self._decoder.pace_s = float(path.removeprefix("/pace/")) / 1000
            return json_answer({"pace_s": self._decoder.pace_s})
        if path.startswith("/sequences/"):
            self._decoder.max_sequences = int(path.removeprefix("/sequences/"))
            return json_answer({"max_sequences": self._decoder.max_sequences})
        if path == "/load":
            return json_answer({"streams": self._decoder.streams, "waiting": self._decoder.waiting})
        if path == "/hatrack/plugin" and self._report:
            return plain_answer(200, self._report)
        if path == "/v1/models":
            names = json.loads(self._report)["names"] if self._report else []
            return json_answer({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        if path in ("/health", "/ping"):
            return plain_answer(200, b"")
        if path == "/metrics":
            return plain_answer(200, b"vllm:generation_tokens_total 1.0\n", "text/plain; version=0.0.4")
        return json_answer({"error": {"message": f"nothing at {path}", "type": "NotFoundError", "code": 404}}, 404)


async def serve(port: int, report: dict[str, Any] | None, socket: str | None = None) -> None:
    """Serve for ever on the loopback address, and on a Unix socket where one is named."""
    loop = asyncio.get_running_loop()
    decoder = Decoder(loop)
    said = json.dumps(report).encode() if report else b""
    server = await loop.create_server(lambda: Connection(decoder, said), "127.0.0.1", port, backlog=1024)
    if socket is not None:
        await loop.create_unix_server(lambda: Connection(decoder, said), socket, backlog=1024)
    # what lives now lives for ever: no collection may stop the clock in the middle of a measurement
    gc.collect()
    gc.disable()
    await server.serve_forever()


def main() -> None:
    """Run as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--socket", help="path of a Unix socket to listen on too")
    parser.add_argument("--plugin", type=Path, help="JSON file with what the engine plugin's report says")
    arguments = parser.parse_args()
    report = json.loads(arguments.plugin.read_bytes()) if arguments.plugin else None
    uvloop.run(serve(arguments.port, report, arguments.socket))


if __name__ == "__main__":
    main()
