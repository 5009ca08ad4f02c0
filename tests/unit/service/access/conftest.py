from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.access.ring import Ring


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[Ring]:
    async with Ring(tmp_path).run() as ready:
        yield ready
