"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

BigInt: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A whole number of 64 bits. SQLite's ``INTEGER`` has as many, and only a column of that name can be a rowid;
PostgreSQL's ``INTEGER`` has 32, which a count of tokens outgrows."""
