from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.access.keys_app import KeysApp


@pytest.fixture
async def keys_app(tmp_path: Path) -> AsyncIterator[KeysApp]:
    async with KeysApp(tmp_path).run() as ready:
        yield ready
