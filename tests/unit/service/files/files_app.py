"""Files over a real database and a real disk, and their routes, without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.access.records import KeyDraft
from service.access.routes import router as access_router
from service.access.service import Keys
from service.database import Database
from service.error_handlers import RequestIds, add_error_handlers
from service.files.routes import router as files_router
from service.files.service import Files
from service.http.schema import add_routes

ADMIN_KEY = "a-key-for-these-tests-0123456789"
MIB = 1024 * 1024
LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'


class FilesApp:
    """The files under test, what they stand on, and a client of their routes with the admin key."""

    def __init__(self, home: Path, *, max_file: int = MIB, max_project: int = 16 * MIB) -> None:
        self.home = home
        self.root = home / "files"
        self.database = Database(home / "hatrack.db")
        self.keys = Keys(home, self.database, ADMIN_KEY)
        self.files = Files(self.root, self.database, max_file_bytes=max_file, max_project_bytes=max_project)
        self.http: httpx.AsyncClient

    def app(self) -> FastAPI:
        app = FastAPI()
        app.state.authenticator, app.state.keys, app.state.files = self.keys.authenticator, self.keys, self.files
        add_routes(app, access_router)
        add_routes(app, files_router)
        add_error_handlers(app)
        return app

    @asynccontextmanager
    async def run(self) -> AsyncIterator[FilesApp]:
        await self.database.open()
        await self.keys.open()
        await self.files.open()
        transport = httpx.ASGITransport(app=RequestIds(self.app()))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as self.http:
                self.http.headers["authorization"] = f"Bearer {ADMIN_KEY}"
                yield self
        finally:
            await self.files.close()
            await self.database.close()

    async def key(self, *scopes: str, **more: Any) -> str:
        """A new key, made by the admin."""
        body = {"name": "test", "scopes": list(scopes), **more}
        return str((await self.http.post("/v1/keys", json=body)).json()["key"])

    async def job_key(self, parent: str = "admin", **draft: Any) -> tuple[str, str]:
        """(id, key) of a key as jobs have it."""
        from service.access.audit import SYSTEM
        from service.access.caller import Scope

        scopes = frozenset({Scope.TRAIN, Scope.INFER, Scope.ADAPTERS})
        wanted = KeyDraft("job", "default", scopes, background=True, parent_key_id=parent, **draft)
        made, key = await self.keys.mint(SYSTEM, wanted)
        return str(made["id"]), key

    async def put(
        self,
        content: bytes = LINE,
        purpose: str = "fine-tune",
        *,
        name: str = "data.jsonl",
        key: str | None = None,
        **more: str,
    ) -> httpx.Response:
        """POST /v1/files, the purpose first, as the openai client does."""
        return await self.http.post(
            "/v1/files", data={"purpose": purpose, **more}, files={"file": (name, content)}, headers=bearer(key)
        )

    async def made(self, content: bytes = LINE, purpose: str = "fine-tune", **more: Any) -> str:
        """The id of a new file."""
        answer = await self.put(content, purpose, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def listed(self, key: str | None = None, **query: Any) -> list[str]:
        """The ids on the list."""
        answer = await self.http.get("/v1/files", params=query, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["data"]]

    def on_disk(self) -> set[str]:
        """The names of everything under the directory of files."""
        return {path.name for path in self.root.rglob("*") if path.is_file()}


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, whose shape must be OpenAI's."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found
