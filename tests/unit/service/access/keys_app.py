"""Keys over a real database, and their routes, without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI

from service.access.caller import Caller, Scope
from service.access.http import caller, needs
from service.access.routes import router
from service.access.service import Keys
from service.database import Database
from service.error_handlers import RequestIds, add_error_handlers
from service.http.schema import add_routes


class KeysApp:
    """The keys under test, their database, and a client of their routes with the admin key."""

    def __init__(self, home: Path, given: str | None = None, url: str | None = None) -> None:
        self.home = home
        self.url = url
        self.given = given
        self.keys: Keys
        self.database: Database
        self.app: RequestIds
        self.http: httpx.AsyncClient

    @asynccontextmanager
    async def run(self) -> AsyncIterator[KeysApp]:
        self.database = Database(self.home / "hatrack.db", self.url)
        self.keys = Keys(self.home, self.database, self.given)
        await self.database.open()
        await self.keys.open()
        self.app = RequestIds(self._app())
        transport = httpx.ASGITransport(app=self.app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as self.http:
                self.http.headers["authorization"] = f"Bearer {self.admin_key}"
                yield self
        finally:
            await self.database.close()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.state.authenticator, app.state.keys = self.keys.authenticator, self.keys
        add_routes(app, router)
        add_error_handlers(app)

        @app.get("/who")
        async def who(known: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
            return {"key_id": known.key_id, "project": known.project}

        @app.get("/adapters-and-train")
        async def both(known: Annotated[Caller, Depends(needs(Scope.ADAPTERS, Scope.TRAIN))]) -> str:
            return known.key_id

        return app

    @property
    def admin_key(self) -> str:
        return self.given or (self.home / "admin.key").read_text().strip()

    async def make(self, name: str = "app", **body: Any) -> dict[str, Any]:
        """POST /v1/keys; the answer, which holds the key."""
        answer = await self.http.post("/v1/keys", json={"name": name, **body})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def get(self, path: str, key: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers={"authorization": f"Bearer {key}", **headers})
