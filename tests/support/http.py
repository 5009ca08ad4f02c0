"""What the tests' fake HTTP servers have in common."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str, bytes, str], tuple[int, bytes, Mapping[str, str]]]
"""Of method, path, body and API key: status, content and headers."""


class QuietHandler(BaseHTTPRequestHandler):
    """Keeps connections open, logs nothing, and sends at once: head and body go out as two packets, and with Nagle's
    algorithm the second waits 40 ms for the client to acknowledge the first."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # five are too few for all that ask at once while this thread waits for a core

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The URL of a server on a free port of this machine, which answers every request with `answer`."""

    class Handler(QuietHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, content, headers = answer(self.command, self.path, body, key)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed

        do_GET = do_POST = do_PUT = do_DELETE = _serve

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
