"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

BigInt: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A whole number of 64 bits. SQLite's ``INTEGER`` has as many, and only a column of that name can be a rowid;
PostgreSQL's ``INTEGER`` has 32, which a count of tokens outgrows."""
ComparableJson: Final = sa.JSON().with_variant(JSONB(), "postgresql")
"""JSON that SQL compares or groups by, which PostgreSQL's ``json`` does not allow. Its ``jsonb`` does not keep the
order of keys: for documents that are given back as they came, take `sa.JSON`."""
