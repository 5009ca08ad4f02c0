"""The sockets of connections to a PostgreSQL server: a server that has frozen keeps them open and never answers.

psycopg waits for an answer without limit, and TCP's own limits see nothing wrong: the kernel of a stopped process goes
on to acknowledge. So a connection is asked with a limit before it is used, and cut from another thread when whoever
waits on it has given up.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import sqlalchemy as sa

PING_S: Final = 5.0
"""How long a connection that was idle may take to answer."""


class Sockets:
    """Which connection each thread uses, of one engine."""

    def __init__(self) -> None:
        self._used: dict[int, Any] = {}

    def watch(self, engine: sa.Engine) -> None:
        """Follow the engine's connections, and give out none that does not answer."""
        sa.event.listen(engine.pool, "connect", self._on_connect, insert=True)
        sa.event.listen(engine.pool, "checkout", self._on_checkout)
        sa.event.listen(engine.pool, "checkin", self._on_checkin)

    def _on_connect(self, connection: Any, _record: Any) -> None:
        self._used[threading.get_ident()] = connection

    def _on_checkout(self, connection: Any, _record: Any, _proxy: Any) -> None:
        self._used[threading.get_ident()] = connection
        if not answers(connection):
            # not this one alone: the others were made to the same server, and the pool makes new ones
            raise sa.exc.InvalidatePoolError

    def _on_checkin(self, _connection: Any, _record: Any) -> None:
        self._used.pop(threading.get_ident(), None)

    def cut(self, thread: int | None = None) -> None:
        """Have whatever waits on the thread's connection, or on any, fail at once as if the server had hung up."""
        connections = list(self._used.values()) if thread is None else [self._used.get(thread)]
        for connection in connections:
            if connection is not None:
                _shut_down(connection)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Cut what this thread waits on after so many seconds."""
        timer = threading.Timer(seconds, self.cut, [threading.get_ident()])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def answers(connection: Any) -> bool:
    """Whether an idle psycopg connection answers within PING_S."""
    import psycopg

    pgconn, until = connection.pgconn, time.monotonic() + PING_S
    is_sound = False
    try:
        pgconn.send_query(b"")  # the statement that costs least
        pgconn.flush()
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        while True:
            while pgconn.is_busy():
                if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                    return False
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return is_sound
            is_sound = result.status == psycopg.pq.ExecStatus.EMPTY_QUERY
    except (psycopg.Error, OSError):
        return False


def _shut_down(connection: Any) -> None:
    """Shut down the socket, and leave its number to its owner, who closes it."""
    import psycopg

    with suppress(psycopg.Error, OSError):
        number = connection.pgconn.socket
        with socket.socket(fileno=os.dup(number)) as copy:
            if connection.pgconn.socket == number:  # it was not closed, and the number given away, meanwhile
                copy.shutdown(socket.SHUT_RDWR)
