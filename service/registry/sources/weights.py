"""The weights of a source: into a file that survives a broken connection, and is asked for from where it ends."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from adapters.errors import DiskFull
from adapters.store import WEIGHTS_FILE
from service.concurrency import in_thread
from service.config import MIB
from service.errors import SourceDamaged, TooLarge
from service.registry.sources.http import ATTEMPTS, Interrupted, SourceClient, gave_up, pause, require_file
from service.registry.sources.origins import Expected, Origin
from service.registry.sources.partial import Partial
from service.registry.upload import SNIFFED_BYTES, refuse_unsafe

HEADROOM_BYTES: Final = 64 * MIB
PIECE_BYTES: Final = MIB // 4
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)", re.ASCII)
log = logging.getLogger("hatrack.sources")


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a file has come; ``total`` is None where the source does not say."""

    file: str
    bytes: int
    total: int | None


class WeightsDownload:
    """Brings one source's weights into a partial file.

    Args:
        client: Asks for them.
        origin: Whose weights.
        partial: Where they go; open.
        max_bytes: Maximum size.
        is_checked: The request states their digest.
        progress: Called as bytes come.
    """

    def __init__(
        self,
        client: SourceClient,
        origin: Origin,
        partial: Partial,
        *,
        max_bytes: int,
        is_checked: bool,
        progress: Callable[[Progress], object],
    ) -> None:
        self._client = client
        self._origin = origin
        self._partial = partial
        self._max_bytes = max_bytes
        self._is_checked = is_checked
        self._progress = progress

    async def run(self) -> Expected | None:
        """Return once they are whole; the digest that the source states of them.

        Raises:
            SourceFailed: ``ATTEMPTS`` attempts in a row have brought nothing.
            SourceNotAllowed, SourceNotFound, TooLarge, PickleRefused, DiskFull.
        """
        partial, failures = self._partial, 0
        while True:
            before = partial.offset
            try:
                return await self._attempt()
            except Interrupted as error:
                await in_thread(partial.checkpoint)
                failures = 0 if partial.offset > before else failures + 1
                log.info("a fetch broke off", extra={"source": str(self._origin.address), "offset": partial.offset})
                if failures >= ATTEMPTS:
                    raise gave_up(WEIGHTS_FILE, error) from error
                await pause(failures)

    async def _attempt(self) -> Expected | None:
        partial, origin = self._partial, self._origin
        headers = _continuing(partial, is_checked=self._is_checked or origin.address.revision is not None)
        async with self._client.get(await origin.outgoing(WEIGHTS_FILE), headers) as answer:
            if answer.response.status == 416 and headers:
                await in_thread(partial.restart, None, None)
                raise Interrupted("the source has no such range")
            require_file(answer, WEIGHTS_FILE, origin.address)
            expected = origin.expected(answer.first)
            await self._accept(answer.response)
            self._tell()
            pending = bytearray()
            try:
                async for chunk in answer.response.content.iter_any():
                    pending += chunk
                    if len(pending) >= PIECE_BYTES:
                        await self._take(pending)
            finally:  # also where it breaks off
                await self._take(pending)
        if partial.total is not None and partial.offset != partial.total:
            raise Interrupted(f"{partial.offset} of {partial.total} bytes came")
        return expected

    async def _accept(self, response: aiohttp.ClientResponse) -> None:
        """Look at the head of an answer: what the file is to have, and whether this is the rest of it or the whole.

        Raises:
            TooLarge, DiskFull: Of what the answer says that it has.
            Interrupted: It is not the part that was asked for.
        """
        partial = self._partial
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
        if total is not None and total > self._max_bytes:
            await in_thread(partial.discard)
            raise self._too_large(total)
        free = shutil.disk_usage(partial.path.parent).free
        if total is not None and free < 2 * total - partial.offset + HEADROOM_BYTES:
            raise DiskFull(f"The weights have {total:,} bytes, for which the gateway's disk has no room.")

    async def _take(self, pending: bytearray) -> None:
        """Write what has come. Raises TooLarge, PickleRefused, DiskFull."""
        partial = self._partial
        if partial.offset == 0 and len(pending) >= SNIFFED_BYTES:
            refuse_unsafe(bytes(pending[:SNIFFED_BYTES]))
        if partial.offset + len(pending) > self._max_bytes:
            await in_thread(partial.discard)
            raise self._too_large(None)
        await in_thread(partial.write, bytes(pending))
        pending.clear()
        self._tell()

    def _tell(self) -> None:
        self._progress(Progress(WEIGHTS_FILE, self._partial.offset, self._partial.total))

    def _too_large(self, size: int | None) -> TooLarge:
        have = "" if size is None else f"; the source's have {size:,}"
        return TooLarge(
            f"the weights must have at most {self._max_bytes:,} bytes (HATRACK_MAX_ADAPTER_MIB){have}",
            param="source.url",
        )


def hand_over(partial: Partial, expected: Expected | None, sha256: str | None, write: Callable[[bytes], object]) -> str:
    """Check whole weights and pass them on; returns their SHA-256. Raises SourceDamaged, and then nothing is kept."""
    sums = partial.checksums()
    if expected is not None and expected.digest != (sums.sha256 if expected.kind == "sha256" else sums.git):
        partial.discard()
        raise expected.mismatch(WEIGHTS_FILE)
    if sha256 is not None and sha256 != sums.sha256:
        partial.discard()
        raise SourceDamaged(
            f"The weights have the SHA-256 {sums.sha256}, and not the one that `source.sha256` says.",
            param="source.sha256",
        )
    for piece in partial.pieces():
        write(piece)
    return sums.sha256


def _continuing(partial: Partial, *, is_checked: bool) -> dict[str, str]:
    """The headers that ask for the rest: none where what has come cannot be told from another file's beginning."""
    if partial.offset == 0 or not (partial.etag or is_checked):
        return {}
    if partial.offset == partial.total:
        partial.offset -= 1  # nothing is missing, but an empty range cannot be asked for
    asked = {"range": f"bytes={partial.offset}-"}
    return asked | ({"if-range": partial.etag} if partial.etag else {})
