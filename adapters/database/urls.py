"""The URLs of databases; light enough for settings, which are read without SQLAlchemy."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")
PREFIX: Final = "postgresql://"
DEFAULT_PORT: Final = "5432"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def is_postgresql(url: str) -> bool:
    """Whether a URL names a database of a PostgreSQL server.

    Not one whose password has an `@` or a `/` that is not percent-encoded: where it ends would be a guess, and what is
    taken for host or database is shown.
    """
    try:
        parsed = urlsplit(url)
        if "@" in parsed.path or parsed.netloc.count("@") > 1:
            return False
        return parsed.scheme in SCHEMES and len(parsed.path) > 1 and (parsed.port is None or parsed.port > 0)
    except ValueError:
        return False


def describe(url: str) -> str:
    """A URL without its user, password and parameters."""
    parsed = urlsplit(url)
    host = parsed.netloc.rpartition("@")[2] or parse_qs(parsed.query).get("host", ["localhost"])[0]
    return f"postgresql://{host}{parsed.path}"


def place_of(url: str) -> str:
    """Hosts, ports and database of a URL, to be compared: `postgresql://host:5432/database`, without user, password and
    parameters. Several hosts have commas between them."""
    parsed = urlsplit(url)
    parameters = parse_qs(parsed.query)
    hosts = parameters.get("host") or [parsed.netloc.rpartition("@")[2]]
    port = parameters.get("port", [DEFAULT_PORT])[0]
    named = [_with_port(host or "localhost", port) for host in ",".join(map(unquote, hosts)).split(",")]
    return f"{PREFIX}{','.join(named)}{parsed.path}"


def is_same_place(place: str, another: str) -> bool:
    """Whether two results of `place_of` have the database and a host in common: a standby may come and go. All names
    of this machine, and the directories of its sockets, are one host."""
    hosts, database = _split(place)
    other_hosts, other_database = _split(another)
    return database == other_database and not hosts.isdisjoint(other_hosts)


def _split(place: str) -> tuple[frozenset[str], str]:
    hosts, _, database = place.removeprefix(PREFIX).rpartition("/")
    return frozenset(map(_canonical, hosts.split(","))), database


def _canonical(host: str) -> str:
    name, _, port = host.rpartition(":")
    name = name.rstrip(".").strip("[]")
    return f"localhost:{port}" if name.startswith("/") or name in LOOPBACK else f"{name}:{port}"


def _with_port(host: str, default: str) -> str:
    if host.startswith("/"):  # the directory of a socket
        return f"{host}:{default}"
    name, colon, port = host.rpartition(":")
    is_address = ":" in name and not name.endswith("]")  # a bare IPv6 address, which has no port
    has_port = bool(colon) and port.isdigit() and not is_address
    return host.lower() if has_port else f"{host.lower()}:{default}"
