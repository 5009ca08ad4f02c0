"""What a URL or a host's name says of where it leads."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def is_unix(url: str) -> bool:
    """Whether an address is a Unix socket's: `unix:/path`."""
    parts = urlsplit(url)
    return parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/")


def without_v1(url: str) -> str:
    """An address without the trailing `/v1` that the `openai` client wants."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def on_this_machine(url: str) -> bool:
    """Whether a URL names a loopback address."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own and nobody else's."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
