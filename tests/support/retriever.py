"""A retriever of the operator's own: a real HTTP server that the webhook provider asks."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests.support.http import QuietHandler

SECRET = "the-secret-of-hatrack-and-retriever"


@dataclass
class Retriever:
    """Answers every question with ``passages``; ``status`` and ``wait_s`` make it fail or answer late."""

    passages: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    wait_s: float = 0
    asked: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        retriever = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                retriever.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
                time.sleep(retriever.wait_s)
                content = json.dumps({"passages": retriever.passages}).encode()
                with suppress(OSError):  # the client may have given up
                    self.send_response(retriever.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/retrieve"

    def reset(self) -> None:
        """Answer as a new one would."""
        self.passages, self.status, self.wait_s, self.asked = [], 200, 0, []

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
