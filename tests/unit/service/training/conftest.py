from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.training.house import House


@pytest.fixture
async def house() -> AsyncIterator[House]:
    # a Unix socket's path has 107 bytes, which pytest's own directories may go beyond
    with tempfile.TemporaryDirectory(prefix="house-") as home:
        async with House(Path(home)).open() as ready:
            yield ready
