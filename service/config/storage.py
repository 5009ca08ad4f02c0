"""The settings of what is kept, a part of ``service.config.Settings``: how much of it, and for how long."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class StorageSettings(BaseSettings):
    """Limits of a project's adapters and vector stores on the disk, and how long audit and usage are kept."""

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
