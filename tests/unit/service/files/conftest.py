from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.files.cabinet import Cabinet


@pytest.fixture
async def cabinet(tmp_path: Path) -> AsyncIterator[Cabinet]:
    async with Cabinet(tmp_path).run() as ready:
        yield ready
