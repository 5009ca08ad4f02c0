from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.service.batches.batches_app import BatchesApp


@pytest.fixture(autouse=True)
def _no_long_waits() -> Iterator[None]:
    """What is polled or tried again in seconds is so at once: no test waits for a clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.batches.pace.ENGINE_POLL_S", 0.01)
        patch.setattr("service.batches.pace.MAX_POLL_S", 0.05)
        patch.setattr("service.batches.results.DISK_RETRY_S", 0.01)
        patch.setattr("service.batches.run.RETRY_S", 0.01)
        patch.setattr("service.batches.run.MAX_RETRY_S", 0.02)
        patch.setattr("service.batches.asker.CLOCK_CHECK_S", 0.05)
        yield


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[BatchesApp]:
    async with BatchesApp(tmp_path).run() as ready:
        yield ready
