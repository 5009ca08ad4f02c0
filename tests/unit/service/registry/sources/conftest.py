"""A fetcher whose operator allows stand-ins on this machine, and what it fetches."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from service.registry.sources import fetch as fetch_module
from service.registry.sources import weights as weights_module
from service.registry.sources.fetch import Fetched, FetchRequest, SourceFetcher
from service.registry.sources.weights import Progress
from tests.support.sources import Faults, FileServer, Hub, running

WEIGHTS = bytes(8) + b"{" + hashlib.sha256(b"weights").digest() * 40_000
"""1.3 MB, in more than one piece of every buffer."""
CONFIG = b'{"peft_type": "LORA", "r": 4}'
README = b"# Voice\n"
FILES = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS, "README.md": README}


@dataclass
class Fetching:
    """Fetches with one home, as a gateway does; `start` makes a new fetcher, as a restart does."""

    home: Path
    settings: dict[str, Any]
    faults: Faults
    progress: list[Progress] = field(default_factory=list)
    written: bytearray = field(default_factory=bytearray)

    @asynccontextmanager
    async def start(self, **options: Any) -> AsyncIterator[SourceFetcher]:
        fetcher = SourceFetcher(Settings(home=self.home, **self.settings), **options)
        try:
            yield fetcher
        finally:
            await fetcher.close()

    async def fetch(
        self,
        url: str,
        *,
        sha256: str | None = None,
        project: str = "default",
        check_config: Callable[[bytes], object] = lambda _config: None,
        on_progress: Callable[[Progress], object] = lambda _step: None,
        **options: Any,
    ) -> Fetched:
        self.written.clear()
        self.progress.clear()

        def tell(step: Progress) -> None:
            has_come = step.bytes > (self.progress[-1].bytes if self.progress else 0)
            self.progress.append(step)
            on_progress(step)
            if has_come:
                self.faults.came.set()

        async with self.start(**options) as fetcher:
            request = FetchRequest(project, fetcher.parse(url), sha256, check_config, tell)
            fetched = await fetcher.fetch(request, self.written.extend)
            await fetcher.forget(fetched)
            return fetched

    def leftovers(self) -> list[str]:
        """The partial files under the home."""
        folder = self.home / "sources"
        return sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""

    async def no_pause(_attempt: int) -> None: ...

    for module in (fetch_module, weights_module):
        monkeypatch.setattr(module, "pause", no_pause)


@pytest.fixture
def web() -> Iterator[FileServer]:
    """A web server with the adapter in `/voices/brand`."""
    server = FileServer()
    server.files = {f"/voices/brand/{name}": data for name, data in FILES.items()}
    with running(server):
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with the adapter in `acme/voice`."""
    hub = Hub()
    hub.put("acme/voice", FILES)
    with running(hub, hub.cdn):
        yield hub


@pytest.fixture
def from_web(tmp_path: Path, web: FileServer) -> Fetching:
    return Fetching(tmp_path / "home", {"sources": (f"{web.url}/voices",)}, web.faults)


@pytest.fixture
def from_hub(tmp_path: Path, hub: Hub) -> Fetching:
    """The operator allows the organization, and the CDN by its address."""
    settings = {"sources": ("hf://acme", hub.cdn.url), "hub_url": hub.url}
    return Fetching(tmp_path / "home", settings, hub.cdn.faults)
