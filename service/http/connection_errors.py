"""Translates aiohttp's errors into ours: one object per HTTP peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

import aiohttp

MakeError = Callable[[BaseException], Exception]
"""Makes the error to raise from aiohttp's, which becomes its cause."""
_MISCONFIGURED: Final = (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError)


class ConnectionErrors:
    """A context manager around requests to one peer and the reading of its answers. Stateless, so it can be shared.

    Args:
        unreachable: The connection failed, so nothing was sent.
        cut: The request may have been sent; its answer did not come, or ended before it was complete.
        timeout: It took too long. None: a TimeoutError passes, and connecting for too long is ``unreachable``.
        misconfigured: The peer's URL or certificate is wrong, so trying again does not help. None: ``unreachable``.
    """

    __slots__ = ("_cut", "_misconfigured", "_timeout", "_unreachable")

    def __init__(
        self,
        *,
        unreachable: MakeError,
        cut: MakeError,
        timeout: MakeError | None = None,
        misconfigured: MakeError | None = None,
    ) -> None:
        self._unreachable = unreachable
        self._cut = cut
        self._timeout = timeout
        self._misconfigured = misconfigured or unreachable

    def __enter__(self) -> None:
        """Nothing is done before an error."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        make = None if error is None else self._maker(error)
        if make is not None and error is not None:
            raise make(error) from error

    def _maker(self, error: BaseException) -> MakeError | None:
        """The function that makes the error to raise; None: ``error`` is not aiohttp's and passes."""
        if isinstance(error, _MISCONFIGURED):
            return self._misconfigured
        if isinstance(error, aiohttp.ClientConnectorError):
            return self._unreachable
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self._timeout or self._unreachable
        if isinstance(error, aiohttp.ServerTimeoutError):
            return self._timeout or self._cut
        if isinstance(error, TimeoutError):
            return self._timeout
        if isinstance(error, aiohttp.ClientError | asyncio.IncompleteReadError):
            return self._cut
        return None
