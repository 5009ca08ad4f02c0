"""The HTTP client of sources: GET requests that go only where the operator's settings let them.

Redirects are followed by hand, each looked at before it is followed, and every host's name is resolved to addresses
that are allowed for it: a host that the operator named may be in a private network, every other one must be public.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from adapters.sources import Source
from service.errors import HatrackError, SourceFailed, SourceNotAllowed, SourceNotFound
from service.http.addresses import AddressNotAllowed, AllowedResolver, is_address, is_allowed, is_public
from service.http.connection_errors import ConnectionErrors

MAX_REDIRECTS: Final = 5
CONNECT_S: Final = 10.0
STALL_S: Final = 30.0
"""Longest wait for the next byte of an answer, s."""
MAX_FIELD_BYTES: Final = 16 * 1024
"""A header of an answer; a CDN's signed addresses have some kilobytes."""
ATTEMPTS: Final = 5
"""Attempts in a row that bring nothing."""
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Interrupted(Exception):
    """An attempt ended early; another may bring the rest. The message is for a person."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for one file.

    Args:
        url: As it is sent: nothing in it is quoted again.
        headers: What only the first host gets, such as its token.
        may_follow: Whether a redirect may lead from the first URL to the second.
    """

    url: URL
    headers: Mapping[str, str]
    may_follow: Callable[[URL, URL], bool]


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer of a chain of redirects, its body not read, and the fields of all answers of the first host."""

    response: aiohttp.ClientResponse
    first: Mapping[str, str]


class SourceClient:
    """One pool of connections for all sources.

    Args:
        named_hosts: Hosts that the operator's settings name literally.
        stall_s: Longest wait for the next byte of an answer, s.
    """

    def __init__(self, named_hosts: Collection[str], *, stall_s: float = STALL_S) -> None:
        self._named = {host.lower() for host in named_hosts}
        self._stall_s = stall_s
        self._session: aiohttp.ClientSession | None = None

    def add_named(self, host: str) -> None:
        """Treat a host as named by the operator: the object store's endpoint, which the environment names."""
        self._named.add(host.lower())

    def may_call(self, host: str, address: str) -> bool:
        """Whether a request to a host may go to one of its addresses."""
        if host.lower() not in self._named:
            return is_public(address)
        return host == address or is_allowed(address, ())  # a literal address is what the operator wrote

    async def close(self) -> None:
        """Close the connections; requests in flight end."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def get(self, outgoing: Outgoing, extra: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Ask for a file.

        Args:
            extra: Headers for every host of the chain, such as `Range`.

        Raises:
            SourceNotAllowed: The host's addresses, or a redirect, are not allowed.
            SourceFailed: There are too many redirects, or what answers does not speak HTTP.
            Interrupted: It cannot be reached now, or the connection broke; also while the body is read.
        """
        with _ERRORS:
            url, first = outgoing.url, dict[str, str]()
            for _ in range(MAX_REDIRECTS + 1):
                self._require_address(url)
                is_first = url.origin() == outgoing.url.origin()
                headers = {"accept-encoding": "identity", **extra, **(outgoing.headers if is_first else {})}
                async with self._client().get(url, headers=headers, allow_redirects=False) as response:
                    if is_first:
                        first |= {name.lower(): value for name, value in response.headers.items()}
                    if response.status not in _REDIRECTS:
                        yield Answer(response, first)
                        return
                    url = _next(url, response, outgoing)
        raise SourceFailed(f"{outgoing.url.host} redirects more than {MAX_REDIRECTS} times", param="source.url")

    def _require_address(self, url: URL) -> None:
        """An address in place of a name is not resolved, so it is looked at here."""
        host = url.host or ""
        if is_address(host) and not self.may_call(host, host):
            raise _not_allowed_host(host)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            resolver = AllowedResolver(self.may_call, "that the gateway may not call")
            connector = aiohttp.TCPConnector(limit=16, resolver=resolver, use_dns_cache=False)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._stall_s),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_field_size=MAX_FIELD_BYTES,
                max_line_size=MAX_FIELD_BYTES,
                requote_redirect_url=False,
            )
        return self._session


def _next(url: URL, response: aiohttp.ClientResponse, outgoing: Outgoing) -> URL:
    """Where a redirect leads. Raises SourceNotAllowed, SourceFailed."""
    try:
        target = url.join(URL(response.headers.get("location", ""), encoded=True))
    except ValueError:
        target = url
    if target == url or target.scheme not in ("http", "https") or not target.host or target.user:
        raise SourceFailed(f"{url.host} redirects to no address", param="source.url")
    if not outgoing.may_follow(url, target):
        raise SourceNotAllowed(
            f"The source redirects to {target.scheme}://{target.host}{_folder(url, target)}, which neither "
            "HATRACK_SOURCES nor HATRACK_SOURCE_REDIRECTS of the gateway covers.",
            param="source.url",
        )
    return target


def _folder(url: URL, target: URL) -> str:
    """Of a redirect inside of one host, the path that was not expected; without the query, which may be a signature."""
    return target.path[:200] if target.origin() == url.origin() else ""


def _not_allowed_host(host: str) -> SourceNotAllowed:
    return SourceNotAllowed(
        f"{host} is in a private network: the gateway calls it only if HATRACK_SOURCES or HATRACK_SOURCE_REDIRECTS "
        "names it literally.",
        param="source.url",
    )


def _unreachable(error: BaseException) -> Exception:
    host = getattr(error, "host", None) or "the source"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressNotAllowed):
        return _not_allowed_host(host)
    return Interrupted(f"{host} cannot be reached ({type(error).__name__})")


def _broken(error: BaseException) -> Exception:
    return Interrupted(f"the connection to the source broke ({type(error).__name__})")


def _wrong(error: BaseException) -> HatrackError:
    return SourceFailed(f"the source's address or certificate is wrong ({type(error).__name__})", param="source.url")


_ERRORS: Final = ConnectionErrors(unreachable=_unreachable, cut=_broken, timeout=_broken, misconfigured=_wrong)


async def pause(attempt: int) -> None:
    """Wait before another attempt: 0.5 s, 1 s, 2 s, … up to 8 s."""
    await asyncio.sleep(min(8.0, 0.5 * 2**attempt))


def require_file(answer: Answer, file: str, address: Source) -> None:
    """Raise SourceNotFound or SourceFailed unless the answer has a file; Interrupted where another attempt may."""
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
            f"{address} has no {file} that the gateway may read (status {status}): it {why}.",
            param="source.url",
        )
    raise SourceFailed(f"the source answered with status {status}", param="source.url")


def gave_up(file: str, error: Interrupted) -> SourceFailed:
    """The error of a file after ``ATTEMPTS`` that have brought nothing."""
    return SourceFailed(
        f"{file} could not be fetched: {error}, {ATTEMPTS} times in a row. What has come of the weights is kept for a "
        "day: push again to go on.",
        param="source.url",
    )
