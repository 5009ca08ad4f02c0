"""Datasets and files over a real database and a real disk, and their routes, without an engine."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
from fastapi import FastAPI

from service.datasets.routes import router
from service.datasets.service import Datasets
from service.http.schema import add_routes
from tests.unit.service.files.files_app import FilesApp, bearer


def rows(*pairs: tuple[str, str]) -> bytes:
    """A file of prompts and completions."""
    return b"".join(orjson.dumps({"prompt": asked, "completion": answer}) + b"\n" for asked, answer in pairs)


class DatasetsApp(FilesApp):
    """The routes under test, with the admin key."""

    def app(self) -> FastAPI:
        app = super().app()
        app.state.datasets = Datasets(self.database, self.files)
        add_routes(app, router)
        return app

    async def push(self, name: str, content: bytes, *, key: str | None = None, **more: Any) -> httpx.Response:
        """Upload a file and POST /v1/datasets."""
        file_id = await self.made(content, key=key)
        return await self.http.post("/v1/datasets", json={"name": name, "file": file_id, **more}, headers=bearer(key))

    async def pushed(self, name: str, content: bytes, **more: Any) -> dict[str, Any]:
        """The version that was made."""
        answer = await self.push(name, content, **more)
        assert answer.status_code == 201, answer.text
        version: dict[str, Any] = answer.json()
        return version

    async def get(self, path: str, key: str | None = None, **params: Any) -> httpx.Response:
        return await self.http.get(f"/v1/datasets{path}", params=params, headers=bearer(key))

    async def delete(self, path: str, key: str | None = None) -> httpx.Response:
        return await self.http.delete(path, headers=bearer(key))
