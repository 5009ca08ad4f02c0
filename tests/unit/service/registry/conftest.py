"""A registry over a real database and a real store, with an engine in memory, and its HTTP routes."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapters.base import BaseDescription
from adapters.store import Store
from service.access.audit import SYSTEM, AuditRow, page
from service.access.caller import DEFAULT_PROJECT, Caller, Scope
from service.access.records import KeyDraft
from service.access.service import Keys
from service.agents import Agent, Bases, ServedBase
from service.config import Settings
from service.database import Database
from service.error_handlers import add_error_handlers
from service.files import records as file_records
from service.files.purposes import Purpose
from service.files.records import NewFile as NewStoreFile
from service.grounding.config import GroundingSettings
from service.grounding.provider import store_not_found
from service.http.schema import add_routes
from service.objects.adapters import StoredAdapters
from service.openapi import build
from service.registry.catalog import Catalog
from service.registry.routes import router
from service.registry.service import Registry
from tests.support.adapters import AdapterFiles, describe_base, make_adapter, make_base
from tests.support.conformance import Conformance
from tests.unit.service.registry.engine import BASE, MemoryEngine

KEY = "a-key-for-these-tests-0123456789"
ADMIN = Caller("admin", DEFAULT_PROJECT, frozenset({Scope.ADMIN}))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(make_base(tmp_path_factory.mktemp("base")), served_name=BASE)


@pytest.fixture
def files(tmp_path: Path, base: BaseDescription) -> Callable[..., AdapterFiles]:
    """Makes adapters: files(seed=1, variant="nan")."""
    count = iter(range(1000))
    return lambda **given: make_adapter(tmp_path / f"adapter-{next(count)}", base, **given)


class RegistryApp:
    """The registry under test, what it stands on, and a client of its routes."""

    def __init__(self, home: Path, base: BaseDescription, *, url: str | None = None, **settings: Any) -> None:
        self.url = url
        self.settings = Settings(home=home, base_model=BASE, max_adapter_mib=1, **settings)
        self.base = base
        self.engine = MemoryEngine()
        self.store = Store(self.settings.store_dir)
        self.agent = Agent("engine", self.settings, self.engine, self.engine, self.engine.restart)
        self.bases = Bases([ServedBase(base, 1, [self.agent])])
        self.catalog = Catalog(BASE, 1)
        self.registry: Registry
        self.database: Database
        self.keys: Keys
        self.http: httpx.AsyncClient
        self.app: FastAPI
        self.stores: dict[str, str] = {}
        """The project of each vector store, by its id."""

    async def check_stores(self, settings: GroundingSettings, caller: Caller) -> None:
        """What the grounding hook checks: the caller's project has the stores, and its key may read them."""
        for store_id in settings.vector_store_ids:
            if self.stores.get(store_id) != caller.project or not caller.may_read(store_id):
                raise store_not_found(store_id, "settings.grounding.vector_store_ids")

    @asynccontextmanager
    async def run(self) -> AsyncIterator[RegistryApp]:
        self.database = database = Database(self.settings.home / "hatrack.db", self.url)
        await database.open()
        self.keys = Keys(self.settings.home, database, KEY)
        await self.keys.open()
        self.registry = Registry(
            *(self.settings, database, StoredAdapters(self.store), self.catalog, self.bases),
            check_stores=self.check_stores,
        )
        await self.registry.open()
        self.app = app = FastAPI()
        app.state.registry = self.registry
        app.state.authenticator = self.keys.authenticator
        add_routes(app, router)
        add_error_handlers(app)
        transport = httpx.ASGITransport(app=app)
        headers = {"authorization": f"Bearer {KEY}"}
        hooks = {"response": [hold_to_the_document]}
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=headers, event_hooks=hooks
            ) as self.http:
                yield self
        finally:
            await self.registry.close()
            await database.close()

    async def push(
        self,
        name: str,
        files: AdapterFiles,
        *,
        query: str = "",
        weights_name: str = "w.safetensors",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        data = {"name": name} | {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
        parts = {"config": ("adapter_config.json", files.config), "weights": (weights_name, files.weights)}
        return await self.http.post(f"/v1/adapters{query}", data=data, files=parts, headers=headers)

    async def push_settings(self, name: str, *, query: str = "", **settings: Any) -> httpx.Response:
        """Push a version without weights, as the admin."""
        return await self.http.post(f"/v1/adapters{query}", json={"name": name, "settings": settings})

    async def key(self, project: str = DEFAULT_PROJECT, adapters: tuple[str, ...] | None = None) -> dict[str, str]:
        """The header of a new key that may look after adapters."""
        draft = KeyDraft("a key of the tests", project, frozenset({Scope.ADAPTERS}), adapters)
        _, key = await self.keys.mint(SYSTEM, draft)
        return {"authorization": f"Bearer {key}"}

    async def job_key(self, project: str = DEFAULT_PROJECT, adapters: tuple[str, ...] | None = None) -> dict[str, str]:
        """The header of a new key as jobs have it."""
        scopes = frozenset({Scope.ADAPTERS, Scope.INFER, Scope.TRAIN})
        _, key = await self.keys.mint(SYSTEM, KeyDraft("a job", project, scopes, adapters, background=True))
        return {"authorization": f"Bearer {key}"}

    async def file(self, file_id: str, project: str = DEFAULT_PROJECT) -> str:
        """The id of a file on the project's list, of which only the row is there."""
        draft = NewStoreFile(file_id, project, "held.jsonl", Purpose.EVALS, 1, "0" * 64, None)
        return (await self.database.run(lambda db: file_records.add(db, draft))).id

    async def verdict(self, version: str, verdict: str = "pass", **more: Any) -> httpx.Response:
        """Write a verdict on ``name@number`` down, as the admin where no headers are given."""
        name, _, number = version.partition("@")
        headers = more.pop("headers", None)
        body = {"verdict": verdict, "sentence": "So it is.", "metric": "exact_match", "examples": 40} | more
        body.setdefault("kind", "evaluation")
        return await self.http.post(f"/v1/adapters/{name}/versions/{number}/verdicts", json=body, headers=headers)

    async def version(self, version: str) -> dict[str, Any]:
        """``name@number`` in the API's form."""
        name, _, number = version.partition("@")
        answer = await self.http.get(f"/v1/adapters/{name}/versions/{number}")
        assert answer.status_code == 200, answer.text
        version_object: dict[str, Any] = answer.json()
        return version_object

    async def audit(self) -> list[AuditRow]:
        """All that was noted of adapters, oldest first."""
        rows = await self.database.run(lambda db: page(db, after=None, limit=1000))
        return [row for row in reversed(rows) if not row.action.startswith("key.")]

    def leftovers(self) -> list[Path]:
        return list((self.settings.store_dir / ".staging").iterdir())


@functools.cache
def conformance() -> Conformance:
    """What the document of the adapters' routes says; it knows nothing of routes that tests add."""
    app = FastAPI()
    add_routes(app, router)
    return Conformance(build(app, {}, ""))


async def hold_to_the_document(answer: httpx.Response) -> None:
    """Fail where an answer is not what the OpenAPI document says of it."""
    kind = answer.headers.get("content-type", "")
    body = await answer.aread()
    request = answer.request
    fault = conformance().complaint(request.method, request.url.path, answer.status_code, kind, body)
    assert fault is None, fault


@pytest.fixture
async def registry_app(tmp_path: Path, base: BaseDescription) -> AsyncIterator[RegistryApp]:
    async with RegistryApp(tmp_path / "home", base).run() as ready:
        yield ready
