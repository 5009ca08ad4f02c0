from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.service.files.files_app import FilesApp


@pytest.fixture
async def files_app(tmp_path: Path) -> AsyncIterator[FilesApp]:
    async with FilesApp(tmp_path).run() as ready:
        yield ready
