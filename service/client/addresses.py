"""What a URL or a host's name says of where it leads, and which client an address is."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit


def is_unix(url: str) -> bool:
    """Whether an address is a Unix socket's: `unix:/path`."""
    try:
        parts = urlsplit(url)
    except ValueError:  # of an IPv6 address
        return False
    return parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/") and "\0" not in url


def is_http(url: str) -> bool:
    """Whether an address is `http://host:port` or `https://host:port`, with a path at most: no user, no query."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of an IPv6 address
        return False
    return valid and url.isascii() and url.isprintable() and not any(character in url for character in " @?#")


def without_v1(url: str) -> str:
    """An address without the trailing `/v1` that the `openai` client wants."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def on_this_machine(url: str) -> bool:
    """Whether a URL names a loopback address."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def client_ip(address: str) -> IPv4Address | IPv6Address | None:
    """A client's IP address, with IPv4-mapped IPv6 as IPv4; None if it is not an IP address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return ip if isinstance(ip, IPv4Address) else ip.ipv4_mapped or ip


def peer_of(ip: IPv4Address | IPv6Address) -> str:
    """The name that a client is counted under: its IPv4 address, or the /64 of its IPv6 address."""
    return str(ip) if isinstance(ip, IPv4Address) else str(IPv6Network((ip, 64), strict=False))
