"""The URLs of databases; light enough for settings, which are read without SQLAlchemy."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs, urlsplit

SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")


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
