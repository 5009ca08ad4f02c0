"""A registry with verdicts, and a stand-in for the trainer that knows evaluations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from adapters.base import BaseDescription
from service.error_handlers import add_error_handlers
from service.files.service import Files
from service.http.schema import add_routes
from service.registry.tables import verdicts
from service.training.client import TrainerClient
from service.training.evaluations import EvaluationService
from service.training.revalidation import Revalidations
from service.training.revalidation_routes import router
from service.training.service import Training
from tests.unit.service.files.files_app import MIB
from tests.unit.service.registry.conftest import RegistryApp
from tests.unit.service.training.training_gateway import StandIn

HELD_OUT = "file-held"
DAY_S = 86_400
EVALUATION = {"model": "voice", "held_out": HELD_OUT, "metric": "exact_match", "metadata": {"team": "a"}}


@dataclass
class EvaluationsStandIn:
    """The trainer's side: the evaluations that it was asked for, newest first in its lists."""

    made: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    """What the gateway said beside each of the requests."""
    headers: list[dict[str, str]] = field(default_factory=list)
    page: int = 100
    refused: set[str] = field(default_factory=set)
    """Models that it does not evaluate."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            return await self._make(request)
        mine = [one for one in self.made if one["project"] == request.headers["x-hatrack-project"]]
        found = request.path.removeprefix("/v1/evaluations").strip("/")
        if found:
            named = [one for one in mine if one["id"] == found]
            return web.json_response(
                named[0] if named else {"error": {"message": "none"}}, status=200 if named else 404
            )
        newest = mine[::-1]
        after = request.query.get("after")
        start = 0 if after is None else [one["id"] for one in newest].index(after) + 1
        data = newest[start : start + self.page]
        return web.json_response({"object": "list", "data": data, "has_more": len(newest) > start + self.page})

    async def _make(self, request: web.Request) -> web.StreamResponse:
        envelope = await request.json()
        body = envelope["request"]
        if body["model"] in self.refused:
            return web.json_response({"error": {"message": "no such suite", "code": "invalid_value"}}, status=400)
        self.requests.append(body)
        self.contexts.append(envelope["context"])
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        evaluation = {
            "object": "evaluation", "id": f"eval-{len(self.made) + 1}", "status": "queued", "verdict": None,
            "metadata": body["metadata"], "project": request.headers["x-hatrack-project"],
        }  # fmt: skip
        self.made.append(evaluation)
        return web.json_response(evaluation)


class RevalidationApp(RegistryApp):
    """The registry app with the routes that judge again; ``trainer`` is away until ``here`` is entered."""

    def __init__(self, home: Path, base: BaseDescription, **settings: Any) -> None:
        super().__init__(home, base, **settings)
        self.socket = home / "t.sock"
        self.evaluations = EvaluationsStandIn()
        self.trainer = StandIn(answer=self.evaluations.answer)
        self.client = TrainerClient(socket=str(self.socket), secret="s" * 16)
        self.revalidations: Revalidations

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RevalidationApp]:
        async with self.run():
            files = Files(self.settings.files_dir, self.database, max_file_bytes=MIB, max_project_bytes=MIB)
            training = Training(self.client, self.database, self.keys, files)
            evaluations = EvaluationService(training, files, self.catalog, self.database)
            self.revalidations = Revalidations(self.registry.verdicts, evaluations, self.client)
            self.app.state.revalidations = self.revalidations
            add_routes(self.app, router)
            add_error_handlers(self.app)
            try:
                yield self
            finally:
                await self.client.close()

    def here(self) -> Any:
        """A context in which the trainer answers."""
        return self.trainer.on(self.socket)

    def evaluation(self, version: str) -> dict[str, Any]:
        """The newest evaluation that judges ``version`` again."""
        return [one for one in self.evaluations.made if one["metadata"]["revalidates"] == version][-1]


async def judge(revalidation_app: RevalidationApp, version: str, *, days: float = 0, **more: Any) -> None:
    """A verdict on a version that was written ``days`` ago."""
    made = await revalidation_app.verdict(version, **{"evaluation": EVALUATION} | more)
    assert made.status_code == 201, made.text
    older = verdicts.update().where(verdicts.c.id == made.json()["id"])
    await revalidation_app.database.run(
        lambda db: db.execute(older.values(created_at=verdicts.c.created_at - int(days * DAY_S)))
    )
