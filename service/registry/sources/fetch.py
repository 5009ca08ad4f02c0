"""Fetches an adapter from a source: its two named files and, if it is there, the README.

Config first, so that an adapter that cannot be served is refused before its weights come; the weights into a file that
survives a broken connection, a gateway that is killed and a caller who leaves (``weights``).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from adapters.manifest import MAX_CONFIG_BYTES
from adapters.sources import Source, parse_source
from adapters.store import CONFIG_FILE
from service.concurrency import Locks, in_thread, repeat
from service.config import MIB
from service.errors import (
    SourceNotAllowed,
    SourceNotFound,
    SourceTimeout,
    TooLarge,
    TooManyFetches,
)
from service.registry.sources.http import ATTEMPTS, Interrupted, SourceClient, gave_up, pause, require_file
from service.registry.sources.origins import Origin, Origins, named_hosts
from service.registry.sources.partial import Partial, Partials, key_of
from service.registry.sources.weights import Progress, WeightsDownload, hand_over

if TYPE_CHECKING:
    from service.config import Settings

README_FILE: Final = "README.md"
MAX_README_BYTES: Final = MIB
MAX_FETCHES: Final = 4
MAX_PROJECT_FETCHES: Final = 2
TOTAL_S: Final = 3600.0
"""Longest time of one fetch, s; the next goes on from what it has brought."""
SWEEP_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to fetch.

    Args:
        project: Whose fetch it is: what has come of it is used for no other project's.
        sha256: What the SHA-256 of the weights must be, in hex; None: what the source says of it, if it does.
        check_config: Called with the config before the weights are asked for; what it raises ends the fetch.
        progress: Called as bytes come.
    """

    project: str
    source: Source
    sha256: str | None
    check_config: Callable[[bytes], object]
    progress: Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The small files, and ``record``, what the version's metadata keep: url, revision, digest, size, time.

    ``key`` names the weights' file, which stays until ``SourceFetcher.forget``.
    """

    key: str
    config: bytes
    readme: bytes | None
    record: dict[str, Any]


class SourceFetcher:
    """Fetches adapters.

    Args:
        settings: Where it may go, and the largest weights.
        stall_s: Longest wait for a byte, s.
        total_s: Longest time of one fetch, s.

    Raises:
        SettingsError: The operator's list needs a package that is missing.
    """

    def __init__(self, settings: Settings, *, stall_s: float | None = None, total_s: float = TOTAL_S) -> None:
        self._prefixes = settings.source_prefixes
        self._max_weights = int(settings.max_adapter_mib * MIB)
        options = {} if stall_s is None else {"stall_s": stall_s}
        self._client = SourceClient(named_hosts(settings), **options)
        self._origins = Origins(settings, self._client)
        self._partials = Partials(settings.home / "sources")
        self._total_s = total_s
        self._locks = Locks()
        self._running: Counter[str] = Counter()

    def parse(self, url: str) -> Source:
        """The source that a request names.

        Raises:
            SourceInvalid: It is not the address of one.
            SourceNotAllowed: The operator's list does not cover it.
        """
        source = parse_source(url)
        if not source.is_under(self._prefixes):
            which = "is empty: it fetches nothing" if not self._prefixes else "does not cover it"
            raise SourceNotAllowed(
                f"The gateway does not fetch from {source}: its setting HATRACK_SOURCES {which}. Ask its operator to "
                "add a prefix, or download the files and push their folder.",
                param="source.url",
            )
        return source

    async def fetch(self, request: FetchRequest, write: Callable[[bytes], object]) -> Fetched:
        """Fetch the files; the weights are passed to ``write`` in a thread once they are whole and checked.

        Raises:
            TooManyFetches: Too many run at once.
            SourceNotAllowed: A redirect or an address is not allowed.
            SourceNotFound, SourceFailed, SourceTimeout, SourceDamaged, TooLarge, PickleRefused, DiskFull.
        """
        async with self._place(request.project):
            try:
                async with asyncio.timeout(self._total_s):
                    return await self._fetch(request, write)
            except TimeoutError:
                raise SourceTimeout(
                    f"{request.source} did not come within {self._total_s:g} s; push again to go on from where it is",
                    param="source.url",
                ) from None

    async def forget(self, fetched: Fetched) -> None:
        """Remove what a fetch has brought: it is a version now, or can never be one."""
        await in_thread(self._partials.remove, fetched.key)

    async def work(self) -> None:
        """Remove what nobody came back for, until cancelled."""
        await repeat(lambda: in_thread(self._partials.sweep), SWEEP_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @asynccontextmanager
    async def _place(self, project: str) -> AsyncIterator[None]:
        if self._running.total() >= MAX_FETCHES or self._running[project] >= MAX_PROJECT_FETCHES:
            raise TooManyFetches(
                f"{MAX_PROJECT_FETCHES} fetches of the project, or {MAX_FETCHES} of all, run already, the maximum; try "
                "again later",
                param="source",
            )
        self._running[project] += 1
        try:
            yield
        finally:
            self._running[project] -= 1
            self._running += Counter()  # keeps no project that has none

    async def _fetch(self, request: FetchRequest, write: Callable[[bytes], object]) -> Fetched:
        origin = self._origins.of(request.source)
        config = await self._small(origin, CONFIG_FILE, MAX_CONFIG_BYTES)
        await in_thread(request.check_config, config)
        readme = await self._readme(origin)
        key = key_of(request.project, str(origin.address), request.sha256 or "")
        async with self._locks.hold(key):
            partial = await in_thread(self._partials.open, key)
            try:
                expected = await self._weights(origin, partial, request).run()
                sha256 = await in_thread(hand_over, partial, expected, request.sha256, write)
                size = partial.offset
            finally:
                await in_thread(self._partials.close, partial)
        record = {
            "url": str(origin.address),
            "revision": origin.address.revision,
            "sha256": sha256,
            "bytes": size,
            "checked_by": "request" if request.sha256 else "source" if expected else None,
            "fetched_at": int(time.time()),
        }
        return Fetched(key, config, readme, record)

    def _weights(self, origin: Origin, partial: Partial, request: FetchRequest) -> WeightsDownload:
        return WeightsDownload(
            *(self._client, origin, partial),
            max_bytes=self._max_weights,
            is_checked=request.sha256 is not None,
            progress=request.progress,
        )

    # small files

    async def _readme(self, origin: Origin) -> bytes | None:
        """The README; None if there is none that is short enough."""
        try:
            return await self._small(origin, README_FILE, MAX_README_BYTES)
        except (SourceNotFound, TooLarge):
            return None

    async def _small(self, origin: Origin, file: str, max_bytes: int) -> bytes:
        """A file that fits in memory, checked by the source's digest."""
        for attempt in range(ATTEMPTS):
            try:
                async with self._client.get(await origin.outgoing(file), {}) as answer:
                    require_file(answer, file, origin.address)
                    expected = origin.expected(answer.first)
                    content = await _read(answer.response, file, max_bytes)
            except Interrupted as error:
                if attempt == ATTEMPTS - 1:
                    raise gave_up(file, error) from error
                await pause(attempt)
                continue
            if expected is not None and expected.digest != _digest(content, expected.kind):
                raise expected.mismatch(file)
            return content
        raise AssertionError("unreachable")


async def _read(response: aiohttp.ClientResponse, file: str, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > max_bytes:
            raise TooLarge(f"{file} of the source must have at most {max_bytes:,} bytes", param="source.url")
    return bytes(content)


def _digest(content: bytes, kind: str) -> str:
    if kind == "sha256":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
