"""Adapters whose requests wait in the queue are read from disk meanwhile.

The engine loads an adapter in the middle of a step, and every stream of the batch waits for the disk: 0.4 s for 200 MB
that nobody has read lately, 14 ms where they are in the page cache (one machine). So whoever waits has its files read
into the page cache before its turn, while the engine decodes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from adapters.store import WEIGHTS_FILE
from service.concurrency import in_thread

CHUNK_BYTES: Final = 4 * 1024 * 1024
FRESH_S: Final = 60.0
"""What was read is not read again for this long, s; after that the kernel may have dropped it for something else."""
AHEAD_BYTES: Final = 2**30
"""So much may have been read for requests that still wait: of more the kernel might drop the first before its turn."""
_LOG: Final = logging.getLogger("hatrack.engine")


class Prefetcher:
    """Reads the weights of adapters that wait, one after another, in order of arrival. For one event loop.

    Args:
        store: The local adapter store, which the engine reads.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._waiting: dict[str, int] = {}
        """How many requests wait for each digest."""
        self._unread: OrderedDict[str, None] = OrderedDict()
        """Those of them that are still to be read."""
        self._ahead: dict[str, int] = {}
        """Those that were read, and their bytes."""
        self._ahead_bytes = 0
        self._read_at: OrderedDict[str, float] = OrderedDict()
        """When each was read, on the monotonic clock; the oldest first."""
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.read_bytes = 0
        """Bytes read since the start."""

    def want(self, digest: str) -> None:
        """A request for an adapter that the engine has not loaded begins to wait."""
        self._waiting[digest] = self._waiting.get(digest, 0) + 1
        if self._waiting[digest] == 1 and not self._is_fresh(digest):
            self._unread[digest] = None
            self._go_on()

    def drop(self, digest: str) -> None:
        """A request that was announced by ``want`` waits no longer; what nobody waits for is not read any further."""
        left = self._waiting.get(digest, 0) - 1
        if left > 0:
            self._waiting[digest] = left
            return
        self._waiting.pop(digest, None)
        self._unread.pop(digest, None)
        self._ahead_bytes -= self._ahead.pop(digest, 0)
        self._go_on()

    async def close(self) -> None:
        """Stop reading."""
        self._closed = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_fresh(self, digest: str) -> bool:
        """Whether it was read lately."""
        oldest = time.monotonic() - FRESH_S
        while self._read_at and next(iter(self._read_at.values())) < oldest:
            self._read_at.popitem(last=False)
        return digest in self._read_at

    def _go_on(self) -> None:
        if self._task is None and self._may_read():
            self._task = asyncio.create_task(self._read_waiting(), name="prefetch")

    def _may_read(self) -> bool:
        return bool(self._unread) and self._ahead_bytes < AHEAD_BYTES and not self._closed

    async def _read_waiting(self) -> None:
        try:
            while self._may_read():
                digest, _ = self._unread.popitem(last=False)
                began = time.monotonic()
                size = await in_thread(self._read, digest)
                self.read_bytes += size
                if digest in self._waiting:
                    self._unread.pop(digest, None)  # it left and came back meanwhile
                    self._ahead_bytes += size - self._ahead.get(digest, 0)
                    self._ahead[digest] = size
                    self._read_at[digest] = began
                    self._read_at.move_to_end(digest)
                _LOG.debug(
                    "read an adapter that waits for its turn",
                    extra={"digest": digest, "bytes": size, "seconds": time.monotonic() - began},
                )
        finally:
            self._task = None

    def _read(self, digest: str) -> int:
        """Read a file for the kernel to keep, while it is waited for; returns the bytes read. A file that cannot be
        read is the engine's to report."""
        buffer, size = bytearray(CHUNK_BYTES), 0
        try:
            descriptor = os.open(self._store / digest / WEIGHTS_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                while not self._closed and digest in self._waiting and (count := os.preadv(descriptor, [buffer], size)):
                    size += count
            finally:
                os.close(descriptor)
        except OSError as error:
            _LOG.debug("an adapter could not be read ahead", extra={"reason": str(error)})
        return size
