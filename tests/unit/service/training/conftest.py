from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.training.training_gateway import TrainingGateway


@pytest.fixture
async def gateway() -> AsyncIterator[TrainingGateway]:
    # a Unix socket's path has 107 bytes, which pytest's own directories may go beyond
    with tempfile.TemporaryDirectory(prefix="hatrack-") as home:
        async with TrainingGateway(Path(home)).open() as ready:
            yield ready
