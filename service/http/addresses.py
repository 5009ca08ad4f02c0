"""Which IP addresses the gateway may call for an outside endpoint, looked at where a host's name is resolved.

A check before would leave time for the name to lead elsewhere; here the connection goes to what was checked.
And how a Unix socket is connected to.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

METADATA: Final = frozenset({ip_address("fd00:ec2::254"), ip_address("100.100.100.200")})
"""Clouds' metadata services that are not link-local."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
Network = IPv4Network | IPv6Network


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    """Whether requests may go to an IP address: to ``networks``, or if there are none, to any host's address.

    Link-local addresses and METADATA are none of these without a network that names them: there, clouds give out
    credentials.
    """
    ip = _ip(address)
    if networks:
        return any(ip in network for network in networks)
    if ip in METADATA:
        return False
    if ip.is_loopback:
        return True  # ::1 lies in a range that counts as reserved
    return not (ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the internet, and not to this machine or its network."""
    ip = _ip(address)
    inner = _translated(ip) if isinstance(ip, IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    tunnel = ip.sixtofour if isinstance(ip, IPv6Address) else None
    return is_allowed(address, ()) and ip.is_global and (tunnel is None or tunnel.is_global)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, which is not resolved."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _ip(address: str) -> IPv4Address | IPv6Address:
    ip = ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def _translated(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a NAT64 translates an address to; None if it translates none."""
    return IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None


class AddressNotAllowed(OSError):
    """A host's name leads to no address that may be called."""


class AllowedResolver(AbstractResolver):
    """Resolves names to allowed addresses only.

    Args:
        allows: Of a host's name and one of its addresses.
        complaint: Ends the message of the error for a host that has none: "… resolves only to addresses …".
    """

    def __init__(self, allows: Callable[[str, str], bool], complaint: str) -> None:
        self._inner = ThreadedResolver()
        self._allows = allows
        self._complaint = complaint

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The host's allowed addresses. Raises AddressNotAllowed if there is none, OSError if there is no such host."""
        results = await self._inner.resolve(host, port, family)
        allowed = [result for result in results if self._allows(host, result["host"])]
        if not allowed:
            raise AddressNotAllowed(f"{host} resolves only to addresses {self._complaint}")
        return allowed

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()


def connect_unix(path: str) -> socket.socket:
    """A non-blocking Unix socket, connected at once. asyncio takes one whose backlog is full for connected.

    Raises:
        OSError: Nobody listens there, or no more connections are taken now (BlockingIOError).
    """
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.setblocking(False)
        connected.connect(path)
    except OSError:
        connected.close()
        raise
    return connected
