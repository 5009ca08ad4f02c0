"""The trainer's application: its parts put together, who is let in, and one error shape for whatever goes wrong."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.config import Installation, Settings
from trainer.errors import Broken, Invalid, Missing, NotAllowed, RequestError, UnknownCaller, UnknownParameter
from trainer.evaluate.endpoints import read as read_endpoints
from trainer.evaluations import runner as evaluations_runner
from trainer.evaluations.desk import Desk
from trainer.evaluations.routes import router as evaluations_router
from trainer.jobs import fit, records
from trainer.jobs.checking import DataChecks
from trainer.jobs.database import Database
from trainer.jobs.endings import Endings
from trainer.jobs.gateway_side import GatewaySide
from trainer.jobs.place import Place
from trainer.jobs.process import Command, worker_command
from trainer.jobs.pulse import Pulse
from trainer.jobs.routes import internal, router
from trainer.jobs.service import Jobs
from trainer.jobs.streaming import Streams
from trainer.jobs.supervisor import Supervisor
from trainer.reviews.routes import router as reviews_router
from trainer.reviews.service import Reviews

SECRET_HEADER = "x-hatrack-trainer-secret"  # noqa: S105 (a header's name)
_LOG = logging.getLogger("hatrack.trainer.http")


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a trainer."""

    database: Database
    place: Place
    gateway: GatewaySide
    supervisor: Supervisor
    jobs: Jobs
    checks: DataChecks
    streams: Streams
    evaluations: Desk
    reviews: Reviews

    @classmethod
    def build(
        cls,
        settings: Settings,
        installation: Installation,
        base: fit.Base,
        command: Command = worker_command,
        evaluating: evaluations_runner.Command = evaluations_runner.worker_command,
    ) -> Trainer:
        """Put the parts together; nothing is opened or started."""
        database = Database(installation.directory / "jobs.db")
        place = Place(installation.jobs, installation.directory / "spent")
        pulse = Pulse()
        gateway = GatewaySide(installation.gateway, settings, database, place)
        reviews = Reviews(installation.directory, read_endpoints(settings.endpoints))
        endings = Endings(settings, installation, base, database, place, pulse, gateway, reviews)
        supervisor = Supervisor(settings, database, place, pulse, endings, command)
        return cls(
            database=database,
            place=place,
            gateway=gateway,
            supervisor=supervisor,
            jobs=Jobs(settings, installation, base, database, place, pulse, supervisor.working),
            checks=DataChecks(settings, installation),
            streams=Streams(database, pulse),
            evaluations=Desk.build(settings, installation, base.positions, evaluating, reviews),
            reviews=reviews,
        )

    async def start(self) -> None:
        """Open the records, find what a former trainer has left, and begin. Raises SettingsError."""
        self.place.open()
        await self.database.open()
        await self.reviews.start()
        await self.gateway.start()
        await self.supervisor.start()
        await self.evaluations.start()

    async def stop(self) -> None:
        """Have the workers checkpoint and end, and close everything."""
        await self.supervisor.stop()
        await self.evaluations.stop()
        await self.gateway.stop()
        await self.reviews.stop()
        await self.database.close()


def create_app(trainer: Trainer, settings: Settings) -> FastAPI:
    """The application; it starts and stops `trainer`."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await trainer.start()
        try:
            yield
        finally:
            await trainer.stop()

    app = FastAPI(title="Hatrack trainer", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.trainer = trainer
    app.include_router(router)
    app.include_router(internal)
    app.include_router(evaluations_router)
    app.include_router(reviews_router)
    app.add_api_route("/health", _health, methods=["GET"])
    _add_error_handlers(app)
    # the last that is added is the first that sees a request
    app.add_middleware(OnlyTheGateway, secret=settings.secret.get_secret_value() if settings.secret else None)
    app.add_middleware(LastResort)
    return app


async def _health(request: Request) -> dict[str, Any]:
    """The gateway asks every few seconds; its `/metrics` shows the pauses."""
    trainer: Trainer = request.app.state.trainer
    return {"status": "ok", "paused_seconds": await trainer.database.run(records.paused_s)}


class OnlyTheGateway:
    """Lets in who shows the secret, where there is one; a socket's mode keeps others out where there is none."""

    def __init__(self, app: ASGIApp, secret: str | None) -> None:
        self.app = app
        self._secret = None if secret is None else secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] == "http" and self._secret is not None:
            shown = Headers(scope=scope).get(SECRET_HEADER, "").encode("latin-1")
            if not hmac.compare_digest(shown, self._secret):
                refused = UnknownCaller("this trainer answers its gateway alone, which shows a secret")
                return await answer(refused)(scope, receive, send)
        return await self.app(scope, receive, send)


class LastResort:
    """An exception that nobody expected becomes a 500 in the one shape, if nothing was sent yet."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            return await self.app(scope, receive, watched)
        except ClientDisconnect:
            return None
        except Exception:
            _LOG.exception("a request failed: %s %s", scope["method"], scope["path"])
            if started:
                raise
            return await answer(Broken("the trainer failed; its log has the reason"))(scope, receive, send)


def answer(error: RequestError) -> Response:
    """An error as a response."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 409 or error.status >= 500:
        headers["x-should-retry"] = "false"  # OpenAI's clients would; the same again ends the same
    return JSONResponse(error.payload(), error.status, headers)


def _add_error_handlers(app: FastAPI) -> None:
    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)  # noqa: S101 (registered for this class alone)
        return answer(error)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")) or None
        kind = UnknownParameter if first["type"] == "extra_forbidden" else Invalid
        found = f" (found {str(first.get('input'))[:100]!r})" if first["loc"][0] != "header" else ""
        return answer(kind(f"`{param}`: {first['msg']}{found}", param=param))

    async def frameworks(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code == 405:
            return answer(NotAllowed(f"{request.method} is not allowed here"))
        if error.status_code == 404:
            return answer(Missing("there is nothing here"))
        return answer(Invalid(str(error.detail)))

    app.add_exception_handler(RequestError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, frameworks)
