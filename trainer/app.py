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

from adapters.protocol.runs import SECRET_HEADER
from adapters.validation import message, shown
from trainer.config import Installation, Settings
from trainer.data.checking import DataChecks
from trainer.database import FILE, Database
from trainer.errors import Broken, Invalid, Missing, NotAllowed, RequestError, UnknownCaller, UnknownParameter
from trainer.evaluate.endpoints import read_endpoints as read_endpoints
from trainer.evaluate.evaluations import kind as evaluation_kind
from trainer.evaluate.evaluations.routes import router as evaluations_router
from trainer.evaluate.evaluations.service import Evaluations
from trainer.finetune import capacity
from trainer.finetune import kind as finetune_kind
from trainer.finetune.objects import event_object
from trainer.finetune.routes import internal, router
from trainer.finetune.service import Jobs
from trainer.reviews.routes import router as reviews_router
from trainer.reviews.service import Reviews
from trainer.runs import records
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.notifier import Notifier
from trainer.runs.process import Command
from trainer.runs.streaming import Streams
from trainer.runs.supervisor import Supervisor
from trainer.runs.transitions import AnyKind, Transitions

_LOG = logging.getLogger("hatrack.trainer.http")


@dataclass(frozen=True, slots=True)
class Trainer:
    """The parts of a trainer."""

    database: Database
    kinds: tuple[AnyKind, ...]
    housekeeper: Housekeeper
    supervisor: Supervisor
    jobs: Jobs
    evaluations: Evaluations
    checks: DataChecks
    streams: Streams
    reviews: Reviews

    @classmethod
    def build(
        cls,
        settings: Settings,
        installation: Installation,
        base: capacity.Base,
        command: Command = finetune_kind.worker_command,
        evaluating: Command = evaluation_kind.worker_command,
    ) -> Trainer:
        """Put the parts together; nothing is opened or started.

        Args:
            command: The command line of a job's worker.
            evaluating: The command line of an evaluation's worker.
        """
        database = Database(installation.directory / FILE)
        notifier = Notifier()
        directories = {
            finetune_kind.NAME: finetune_kind.job_directories(installation),
            evaluation_kind.NAME: evaluation_kind.evaluation_directories(installation),
        }
        housekeeper = Housekeeper(installation.gateway, settings, database, directories)
        reviews = Reviews(database, read_endpoints(settings.endpoints))
        jobs, evaluations = directories[finetune_kind.NAME], directories[evaluation_kind.NAME]
        finetune = finetune_kind.FinetuneKind(
            settings, installation, base, database, jobs, housekeeper, reviews, command
        )
        evaluation = evaluation_kind.EvaluationKind(evaluations, reviews, evaluating)
        kinds: tuple[AnyKind, ...] = (finetune, evaluation)
        transitions = Transitions(database, notifier, housekeeper)
        supervisor = Supervisor(settings, database, notifier, transitions, kinds)
        return cls(
            database=database,
            kinds=kinds,
            housekeeper=housekeeper,
            supervisor=supervisor,
            jobs=Jobs(finetune, settings, installation, base, database, notifier, supervisor.working),
            evaluations=Evaluations(evaluation, settings, installation, base.positions, database, notifier),
            checks=DataChecks(settings, installation),
            streams=Streams(database, notifier, event_object),
            reviews=reviews,
        )

    async def start(self) -> None:
        """Open the records, find what a former trainer has left, and begin. Raises SettingsError."""
        for kind in self.kinds:
            kind.directories.open()
        await self.database.open()
        await self.housekeeper.start()
        await self.supervisor.start()

    async def stop(self) -> None:
        """Have the workers checkpoint and end, and close everything."""
        await self.supervisor.stop()
        await self.housekeeper.stop()
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
        found = f" (found {shown(first.get('input'))})" if first["loc"][0] != "header" else ""
        return answer(kind(f"`{param}`: {message(first)}{found}", param=param))

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
