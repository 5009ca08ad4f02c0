"""Fetches an adapter from a source: its two named files and, if it is there, the README.

Config first, so that an adapter that cannot be served is refused before its weights come; the weights into a file that
survives a broken connection, a gateway that is killed and a caller who leaves, and is asked for from where it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from adapters.errors import DiskFull
from adapters.manifest import MAX_CONFIG_BYTES
from adapters.sources import Source, parse_source
from adapters.store import CONFIG_FILE, WEIGHTS_FILE
from service.concurrency import Locks, in_thread, repeat
from service.config import MIB
from service.errors import (
    SourceDamaged,
    SourceFailed,
    SourceNotAllowed,
    SourceNotFound,
    SourceTimeout,
    TooLarge,
    TooManyFetches,
)
from service.registry.sources.http import Answer, Interrupted, SourceClient, pause
from service.registry.sources.origins import Expected, Origin, Origins, named_hosts
from service.registry.sources.partial import Partial, Partials, key_of
from service.registry.upload import SNIFFED_BYTES, refuse_unsafe

if TYPE_CHECKING:
    from service.config import Settings

README_FILE: Final = "README.md"
MAX_README_BYTES: Final = MIB
MAX_FETCHES: Final = 4
MAX_PROJECT_FETCHES: Final = 2
TOTAL_S: Final = 3600.0
"""Longest time of one fetch, s; the next goes on from what it has brought."""
ATTEMPTS: Final = 5
"""Attempts in a row that bring nothing."""
HEADROOM_BYTES: Final = 64 * MIB
SWEEP_S: Final = 3600.0
PIECE_BYTES: Final = MIB // 4
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
log = logging.getLogger("hatrack.sources")


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a file has come; ``total`` is None where the source does not say."""

    file: str
    bytes: int
    total: int | None


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
                expected = await self._weights(origin, partial, request)
                sha256 = await in_thread(_hand_over, partial, expected, request.sha256, write)
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
                    _require(answer, file, origin)
                    expected = origin.expected(answer.first)
                    content = await _read(answer.response, file, max_bytes)
            except Interrupted as error:
                if attempt == ATTEMPTS - 1:
                    raise _gave_up(file, error) from error
                await pause(attempt)
                continue
            if expected is not None and expected.digest != _digest(content, expected.kind):
                raise _damaged(file, expected.kind)
            return content
        raise AssertionError("unreachable")

    # the weights

    async def _weights(self, origin: Origin, partial: Partial, request: FetchRequest) -> Expected | None:
        """Bring the weights until they are whole; the digest that the source states of them."""
        failures = 0
        while True:
            before = partial.offset
            try:
                expected = await self._attempt(origin, partial, request)
            except Interrupted as error:
                await in_thread(partial.checkpoint)
                failures = 0 if partial.offset > before else failures + 1
                log.info("a fetch broke off", extra={"source": str(request.source), "offset": partial.offset})
                if failures >= ATTEMPTS:
                    raise _gave_up(WEIGHTS_FILE, error) from error
                await pause(failures)
            else:
                return expected

    async def _attempt(self, origin: Origin, partial: Partial, request: FetchRequest) -> Expected | None:
        headers = _continuing(partial, is_checked=request.sha256 is not None or origin.address.revision is not None)
        async with self._client.get(await origin.outgoing(WEIGHTS_FILE), headers) as answer:
            if answer.response.status == 416 and headers:
                await in_thread(partial.restart, None, None)
                raise Interrupted("the source has no such range")
            _require(answer, WEIGHTS_FILE, origin)
            expected = origin.expected(answer.first)
            await self._accept(answer.response, partial)
            request.progress(Progress(WEIGHTS_FILE, partial.offset, partial.total))
            pending = bytearray()
            try:
                async for chunk in answer.response.content.iter_any():
                    pending += chunk
                    if len(pending) >= PIECE_BYTES:
                        await self._take(partial, pending, request)
            finally:  # also where it breaks off
                await self._take(partial, pending, request)
        if partial.total is not None and partial.offset != partial.total:
            raise Interrupted(f"{partial.offset} of {partial.total} bytes came")
        return expected

    async def _accept(self, response: aiohttp.ClientResponse, partial: Partial) -> None:
        """Look at the head of an answer: what the file is to have, and whether this is the rest of it or the whole.

        Raises:
            TooLarge, DiskFull: Of what the answer says that it has.
            Interrupted: It is not the part that was asked for.
        """
        tag = response.headers.get("etag", "")
        etag = tag if tag.startswith('"') else None  # a weak one is no reason to put two parts together
        if response.status == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            total = int(found[2]) if found is not None and found[2] != "*" else None
            if found is None or int(found[1]) != partial.offset or partial.total not in (None, total):
                await in_thread(partial.restart, None, None)
                raise Interrupted("the source answered with another part of the file")
            partial.total = total
        else:
            total = response.content_length
            await in_thread(partial.restart, total, etag)
        if total is not None and total > self._max_weights:
            await in_thread(partial.discard)
            raise self._too_large(total)
        free = shutil.disk_usage(partial.path.parent).free
        if total is not None and free < 2 * total - partial.offset + HEADROOM_BYTES:
            raise DiskFull(f"The weights have {total:,} bytes, for which the gateway's disk has no room.")

    async def _take(self, partial: Partial, pending: bytearray, request: FetchRequest) -> None:
        """Write what has come. Raises TooLarge, PickleRefused, DiskFull."""
        if partial.offset == 0 and len(pending) >= SNIFFED_BYTES:
            refuse_unsafe(bytes(pending[:SNIFFED_BYTES]))
        if partial.offset + len(pending) > self._max_weights:
            await in_thread(partial.discard)
            raise self._too_large(None)
        await in_thread(partial.write, bytes(pending))
        pending.clear()
        request.progress(Progress(WEIGHTS_FILE, partial.offset, partial.total))

    def _too_large(self, size: int | None) -> TooLarge:
        have = "" if size is None else f"; the source's have {size:,}"
        return TooLarge(
            f"the weights must have at most {self._max_weights:,} bytes (HATRACK_MAX_ADAPTER_MIB){have}",
            param="source.url",
        )


def _continuing(partial: Partial, *, is_checked: bool) -> dict[str, str]:
    """The headers that ask for the rest: none where what has come cannot be told from another file's beginning."""
    if partial.offset == 0 or not (partial.etag or is_checked):
        return {}
    if partial.offset == partial.total:
        partial.offset -= 1  # nothing is missing, but an empty range cannot be asked for
    asked = {"range": f"bytes={partial.offset}-"}
    return asked | ({"if-range": partial.etag} if partial.etag else {})


def _require(answer: Answer, file: str, origin: Origin) -> None:
    """Raise unless the answer has a file. Interrupted where another attempt may."""
    status = answer.response.status
    if status in (200, 206):
        encoding = answer.response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise SourceFailed(f"the source sends {file} as {encoding[:40]}, unasked", param="source.url")
        return
    if status in _RETRIED:
        raise Interrupted(f"the source answered with status {status}")
    if status in (401, 403, 404, 410):
        why = "is private, or its terms are not accepted" if status in (401, 403) else "is not there"
        raise SourceNotFound(
            f"{origin.address} has no {file} that the gateway may read (status {status}): it {why}.",
            param="source.url",
        )
    raise SourceFailed(f"the source answered with status {status}", param="source.url")


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


def _hand_over(
    partial: Partial, expected: Expected | None, sha256: str | None, write: Callable[[bytes], object]
) -> str:
    """Check whole weights and pass them on; returns their SHA-256. Raises SourceDamaged, and then nothing is kept."""
    sums = partial.checksums()
    if expected is not None and expected.digest != (sums.sha256 if expected.kind == "sha256" else sums.git):
        partial.discard()
        raise _damaged(WEIGHTS_FILE, expected.kind)
    if sha256 is not None and sha256 != sums.sha256:
        partial.discard()
        raise SourceDamaged(
            f"The weights have the SHA-256 {sums.sha256}, and not the one that `source.sha256` says.",
            param="source.sha256",
        )
    for piece in partial.pieces():
        write(piece)
    return sums.sha256


def _damaged(file: str, kind: str) -> SourceDamaged:
    name = "SHA-256" if kind == "sha256" else "Git hash"
    return SourceDamaged(
        f"{file} came with another content than its {name} at the source says; nothing of it is kept. Push again.",
        param="source.url",
    )


def _gave_up(file: str, error: Interrupted) -> SourceFailed:
    return SourceFailed(
        f"{file} could not be fetched: {error}, {ATTEMPTS} times in a row. What has come of the weights is kept for a "
        "day: push again to go on.",
        param="source.url",
    )
