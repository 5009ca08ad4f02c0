"""Builds the trainer and its FastAPI application, with authentication and OpenAI's error format."""

from __future__ import annotations

import hmac
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.protocol.runs import SECRET_HEADER, UNUSED_KEYS_PATH, RunKeys
from adapters.validation import message, shown
from trainer.config import Settings
from trainer.data.checking import DataChecks
from trainer.database import FILE, Database
from trainer.errors import (
    InternalError,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    RequestError,
    SettingsError,
    Unauthenticated,
    UnknownParameter,
)
from trainer.evaluate.endpoints import read_endpoints as read_endpoints
from trainer.evaluate.evaluations import kind as evaluation_kind
from trainer.evaluate.evaluations.look_store import LookStore
from trainer.evaluate.evaluations.routes import router as evaluations_router
from trainer.evaluate.evaluations.service import Evaluations
from trainer.evaluate.evaluations.spec import served_model
from trainer.evaluate.teachers import Teachers
from trainer.evaluate.teachers import router as teachers_router
from trainer.finetune import capacity
from trainer.finetune import kind as finetune_kind
from trainer.finetune.cost_routes import router as costs_router
from trainer.finetune.costs import JobCosts
from trainer.finetune.estimates import JobEstimates
from trainer.finetune.objects import event_object
from trainer.finetune.routes import internal, router
from trainer.finetune.service import Jobs
from trainer.finetune.tracked import tracked_job
from trainer.http import read_json
from trainer.installation import Installation
from trainer.ladder import kind as ladder_kind
from trainer.ladder.routes import router as ladders_router
from trainer.ladder.service import Ladders
from trainer.reviews.routes import router as reviews_router
from trainer.reviews.service import Reviews
from trainer.runs import records
from trainer.runs.children import Children
from trainer.runs.directories import RunDirectories
from trainer.runs.housekeeping import Housekeeper
from trainer.runs.kind import AnyKind
from trainer.runs.notifier import Notifier
from trainer.runs.process import Command
from trainer.runs.retention import Retention
from trainer.runs.streaming import Streams
from trainer.runs.supervisor import Supervisor
from trainer.runs.tracking import TrackingFollower
from trainer.runs.transitions import Transitions
from trainer.tracking.available import trackers
from trainer.validation import validated
from trainer.webhook import outbox
from trainer.webhook.sender import Address, WebhookSender

_LOG = logging.getLogger("hatrack.trainer.http")


@dataclass(frozen=True, slots=True)
class Trainer:
    """The components of a trainer."""

    database: Database
    kinds: tuple[AnyKind, ...]
    housekeeper: Housekeeper
    retention: Retention
    supervisor: Supervisor
    jobs: Jobs
    costs: JobCosts
    estimates: JobEstimates
    evaluations: Evaluations
    ladders: Ladders
    checks: DataChecks
    streams: Streams
    reviews: Reviews
    teachers: Teachers
    webhook: WebhookSender
    tracking: TrackingFollower

    @classmethod
    def build(
        cls,
        settings: Settings,
        installation: Installation,
        base: capacity.BaseModelInfo,
        command: Command = finetune_kind.worker_command,
        evaluating: Command = evaluation_kind.worker_command,
        others: Mapping[str, capacity.BaseModelInfo] = MappingProxyType({}),
    ) -> Trainer:
        """Create the components; nothing is opened or started.

        Args:
            base, others: What is known of the default base, and of the other ones by their served names.
            command: Gives the command line of a job's worker.
            evaluating: Gives the command line of an evaluation's worker.
        """
        database, notifier = Database(installation.directory / FILE, settings.database_address), Notifier()
        bases = {installation.base_name: base, **others}
        directories = _directories(installation)
        housekeeper = Housekeeper(installation.gateway, settings, database, directories)
        endpoints = read_endpoints(settings.endpoints)
        jobs, evaluations = directories[finetune_kind.NAME], directories[evaluation_kind.NAME]
        answered = {evaluation_kind.NAME: evaluations, finetune_kind.NAME: jobs}
        reviews, looks = Reviews(database, endpoints, answered), LookStore(database)
        finetune = finetune_kind.FinetuneKind(
            settings, installation, bases, database, jobs, housekeeper, reviews, looks, command
        )
        evaluation = evaluation_kind.EvaluationKind(evaluations, reviews, looks, evaluating)
        webhook = _webhook(settings, database)
        models = {name: served_model(installation.on(name), base.positions) for name, base in bases.items()}
        ladder = ladder_kind.LadderKind(directories[ladder_kind.NAME], evaluations, jobs)
        kinds: tuple[AnyKind, ...] = (finetune, evaluation, ladder)
        children = Children(database, {kind.name: kind for kind in kinds})
        transitions = Transitions(database, notifier, housekeeper, children, webhook)
        supervisor = Supervisor(settings, database, notifier, transitions, kinds)
        jobs_service = Jobs(
            finetune, settings, installation, bases, database, notifier, supervisor.lines, supervisor.working
        )
        return cls(
            database=database,
            kinds=kinds,
            housekeeper=housekeeper,
            retention=Retention(settings, database, evaluations, evaluation_kind.NAME),
            supervisor=supervisor,
            jobs=jobs_service,
            costs=JobCosts(finetune, database),
            estimates=JobEstimates(jobs_service, finetune, database, settings, installation),
            evaluations=Evaluations(
                evaluation, settings, installation, models, database, notifier, supervisor.lines, reviews
            ),
            ladders=Ladders(
                *(ladder, settings, installation, models[installation.base_name]),
                *(database, notifier, supervisor.lines, endpoints),
            ),
            checks=DataChecks(settings, installation),
            streams=Streams(database, notifier, event_object),
            reviews=reviews,
            teachers=Teachers(endpoints, database),
            webhook=webhook,
            tracking=TrackingFollower(database, notifier, trackers(settings, installation.directory), tracked_job),
        )

    async def start(self) -> None:
        """Open the database, adopt the runs of an earlier trainer, and start scheduling. Raises SettingsError."""
        for kind in self.kinds:
            kind.directories.open()
        await self.checks.open()
        await self.database.open(_end)
        try:
            await self.supervisor.refuse_lost_database()
        except SettingsError:
            await self.database.close()
            raise
        await self.housekeeper.start()
        self.retention.start()
        await self.webhook.start()
        await self.tracking.start()
        await self.supervisor.start()

    async def stop(self) -> None:
        """Have the workers checkpoint and exit, and close everything."""
        await self.supervisor.stop()
        await self.tracking.stop()
        await self.webhook.stop()
        await self.teachers.close()
        await self.retention.stop()
        await self.housekeeper.stop()
        await self.database.close()


def _end() -> None:
    """Have this process end as it does when it is asked to."""
    os.kill(os.getpid(), signal.SIGTERM)


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
    for each in (router, internal, costs_router, evaluations_router, ladders_router, reviews_router, teachers_router):
        app.router.routes.extend(each.routes)  # include_router would build each a second time
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route(UNUSED_KEYS_PATH, _unused_keys, methods=["POST"])
    _add_error_handlers(app)
    # the last middleware added is the first to see a request
    app.add_middleware(GatewayAuthentication, secret=settings.secret.get_secret_value() if settings.secret else None)
    app.add_middleware(UnexpectedErrors)
    return app


async def _health(request: Request) -> dict[str, Any]:
    """Polled by the gateway, whose `/metrics` shows the pauses and the webhook's events."""
    trainer: Trainer = request.app.state.trainer
    status: dict[str, Any] = {"status": "ok", "paused_seconds": await trainer.database.run(records.paused_s)}
    if trainer.webhook.wanted:
        status["webhook"] = await trainer.database.run(outbox.counts)
    return status


async def _unused_keys(request: Request) -> dict[str, Any]:
    """Which of these keys no run has, and none will get: asked by a gateway whose predecessor was killed."""
    trainer: Trainer = request.app.state.trainer
    asked = validated(RunKeys, await read_json(request))

    def work(db: sa.Connection) -> list[str]:
        unused = sorted(set(asked.keys) - records.used_run_keys(db, asked.keys))
        for service in (trainer.jobs, trainer.evaluations, trainer.ladders):
            service.abandon(unused)  # a creation under way must fail: its transaction runs after this one
        return unused

    return {"unused": await trainer.database.run(work)}


class GatewayAuthentication:
    """Rejects requests without the shared secret, if one is set; otherwise the socket's mode keeps others out."""

    def __init__(self, app: ASGIApp, secret: str | None) -> None:
        self.app = app
        self._secret = None if secret is None else secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] == "http" and self._secret is not None:
            secret = Headers(scope=scope).get(SECRET_HEADER, "").encode("latin-1")
            if not hmac.compare_digest(secret, self._secret):
                refused = Unauthenticated(
                    f"missing or wrong {SECRET_HEADER} header; only the gateway may call the trainer"
                )
                return await error_response(refused)(scope, receive, send)
        return await self.app(scope, receive, send)


class UnexpectedErrors:
    """Turns an unexpected exception into a 500 in OpenAI's error format, if no response was started."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one scope."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def send_watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            return await self.app(scope, receive, send_watched)
        except ClientDisconnect:
            return None
        except Exception:
            _LOG.exception("a request failed: %s %s", scope["method"], scope["path"])
            if started:
                raise
            return await error_response(InternalError("internal error in the trainer; see its log"))(
                scope, receive, send
            )


def error_response(error: RequestError) -> Response:
    """The response for an error."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 409 or error.status >= 500:
        headers["x-should-retry"] = "false"  # OpenAI's clients would retry, with the same result
    return JSONResponse(error.payload(), error.status, headers)


def _add_error_handlers(app: FastAPI) -> None:
    async def handle_request_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)  # noqa: S101 (registered for this class alone)
        return error_response(error)

    async def handle_validation_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")) or None
        kind = UnknownParameter if first["type"] == "extra_forbidden" else InvalidField
        given = f"; got {shown(first.get('input'))}" if first["loc"][0] != "header" else ""
        return error_response(kind(f"`{param}`: {message(first)}{given}", param=param))

    async def handle_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code == 405:
            return error_response(MethodNotAllowed(f"{request.method} is not allowed for {request.url.path}"))
        if error.status_code == 404:
            return error_response(NotFound(f"No such route: {request.method} {request.url.path}"))
        return error_response(InvalidField(str(error.detail)))

    app.add_exception_handler(RequestError, handle_request_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_exception)


def _directories(installation: Installation) -> dict[str, RunDirectories]:
    """The directories of each kind of run."""
    return {
        finetune_kind.NAME: finetune_kind.job_directories(installation),
        evaluation_kind.NAME: evaluation_kind.evaluation_directories(installation),
        ladder_kind.NAME: ladder_kind.ladder_directories(installation),
    }


def _webhook(settings: Settings, database: Database) -> WebhookSender:
    address = settings.webhook()
    return WebhookSender(database, None if address is None else Address(*address))
