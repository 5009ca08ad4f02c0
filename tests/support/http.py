"""What the tests' stand-in servers have in common."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler


class QuietHandler(BaseHTTPRequestHandler):
    """Keeps connections, says nothing, and sends at once: head and body go out as two packets, and with Nagle's
    algorithm the second waits 40 ms for the client to acknowledge the first."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Not even then."""
