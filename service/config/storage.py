"""The settings of what is kept, a part of ``service.config.Settings``: how much of it, and for how long."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from adapters.database.urls import is_postgresql

STORE_SCHEMES: Final = ("s3", "gs", "file")


class StorageSettings(BaseSettings):
    """Where the database and the content are, limits of a project's adapters and vector stores on the disk, and how
    long audit and usage are kept."""

    database_url: SecretStr | None = Field(
        None,
        description="A PostgreSQL database for what `hatrack.db` holds: `postgresql://user:password@host:5432/database`"
        " (`deploy/POSTGRESQL.md`). Unset: SQLite, in `hatrack.db` under home.",
    )

    trainer_database_url: SecretStr | None = Field(
        None,
        description="A PostgreSQL database for what the trainer's `jobs.db` holds; it may be the same one. The trainer "
        "reads it; the gateway needs it for `hatrack backup`, `gc` and `move-database`. Unset: SQLite, in "
        "`trainer/jobs.db` under home.",
    )
    store_url: str | None = Field(
        None,
        description="An object store for adapters' weights and uploaded files: `s3://bucket/prefix`, "
        "`gs://bucket/prefix` or `file:///directory` (`deploy/OBJECT_STORE.md`). Unset: the folders `adapters` and "
        "`files` under home.",
    )
    store_cache_gib: float = Field(
        20,
        gt=0,
        description="With `store_url`: disk space for local copies, GiB. The least recently used are removed; those "
        "that are in use or loaded in the engine stay, also beyond it.",
    )
    max_adapters_gib: float | None = Field(
        None,
        gt=0,
        description="Disk space limit for the adapters of one project, GiB; equal weights count once, and those that "
        "no version has any more until they are removed. Unset: none.",
    )
    max_stores_gib: float | None = Field(
        None,
        gt=0,
        description="Disk space limit for the passages and vectors of one project's vector stores, GiB. Unset: none.",
    )
    audit_days: float | None = Field(
        None, ge=1, description="Days for which entries of the audit are kept. Unset: for ever."
    )
    usage_days: float | None = Field(
        None,
        ge=32,
        description="Days for which usage, and what it cost, is kept; budgets need the current month. Unset: for ever.",
    )

    @field_validator("database_url", "trainer_database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        if not is_postgresql(value.get_secret_value()):
            raise ValueError(
                "must be postgresql://user:password@host:port/database, the password without a bare `@` or `/`"
            )
        return value

    @field_validator("store_url")
    @classmethod
    def _object_store(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        is_place = bool(parts.path.strip("/")) and not parts.netloc if parts.scheme == "file" else bool(parts.hostname)
        if parts.scheme not in STORE_SCHEMES or not is_place or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "must be s3://bucket/prefix, gs://bucket/prefix or file:///directory; credentials come from the "
                "environment"
            )
        return value.rstrip("/")

    @property
    def database_address(self) -> str | None:
        """The URL of the database, with its password; None: the file under home."""
        return None if self.database_url is None else self.database_url.get_secret_value()

    @property
    def trainer_database_address(self) -> str | None:
        """The same of the trainer's database."""
        return None if self.trainer_database_url is None else self.trainer_database_url.get_secret_value()
