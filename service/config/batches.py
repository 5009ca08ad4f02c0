"""The settings of batches, a part of ``service.config.Settings``: how large one may be, how much is done at once."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class BatchSettings(BaseSettings):
    """Bounds on `/v1/batches`."""

    batch_requests: int = Field(50_000, ge=1, description="Maximum number of requests in the input file of a batch.")
    batch_file_mib: float = Field(100, gt=0, description="Largest input file of a batch, MiB.")
    batch_concurrency: int = Field(
        16,
        ge=1,
        description=(
            "Requests of all batches together that are in the gateway at once; the engine gets fewer of them while "
            "callers' requests wait."
        ),
    )
    batch_unfinished: int = Field(
        32, ge=1, description="Maximum number of batches of one project that have not ended; then 429."
    )
