from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.datasets.datasets_app import DatasetsApp


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[DatasetsApp]:
    datasets_app = DatasetsApp(tmp_path)
    async with datasets_app.run():
        yield datasets_app
