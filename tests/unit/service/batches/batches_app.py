"""Batches over a real database, a real disk and the real data path; only the engine is a function of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI

from service.access.caller import Caller
from service.access.limits import KeyLimiter
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.admission.request import AdmissionRequest
from service.batches.asking import DataPath
from service.batches.routes import router
from service.batches.run import RunContext
from service.batches.service import Batches
from service.errors import HatrackError
from service.grounding.hook import Hook
from service.http.schema import add_routes
from tests.unit.service.files.files_app import FilesApp, bearer
from tests.unit.service.inference.fakes import BASE, World

CHAT = "/v1/chat/completions"
LIMIT_S = 60.0
Reply = tuple[int, dict[str, Any]] | HatrackError | bytes


def reply(text: str = "ahoy", status: int = 200) -> Reply:
    """What an engine answers to a chat."""
    if status != 200:
        return status, {"error": {"message": text, "code": status}}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, "prompt_tokens_details": None}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": usage}


@dataclass
class PromptEngine:
    """Answers by the question: ``replies`` for it in turn, else an echo; those that it ``holds`` once ``held`` is set.

    ``down`` is what it fails with; ``on_asked`` is called with each question.
    """

    replies: dict[str, list[Reply]] = field(default_factory=dict)
    held: asyncio.Event | None = None
    holds: Callable[[str], bool] = lambda question: True
    down: HatrackError | None = None
    asked: list[str] = field(default_factory=list)
    on_asked: Callable[[str], None] = lambda question: None
    in_flight: int = 0
    most_in_flight: int = 0

    async def send(self, _path: str, body: bytes, _headers: dict[str, str]) -> EngineAnswer:
        if self.down is not None:
            raise self.down
        asked = orjson.loads(body)
        question = asked["messages"][-1]["content"]
        self.asked.append(question)
        self.on_asked(question)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            if self.held is not None and self.holds(question):
                await self.held.wait()
        finally:
            self.in_flight -= 1
        left = self.replies.get(question)
        answer = left.pop(0) if left else reply(f"{question}!")
        if isinstance(answer, HatrackError):
            raise answer
        if isinstance(answer, bytes):
            return EngineAnswer(200, answer)
        status, body = answer
        named = {"model": asked["model"]} if status == 200 else {}
        return EngineAnswer(status, orjson.dumps(body | named))


@dataclass
class EngineAnswer:
    status: int
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)

    async def pass_to(self, take: Callable[[bytes], bool]) -> bool:
        return take(self.content)

    async def read(self) -> bytes:
        return self.content

    def close(self) -> None:
        pass


class BatchesApp(FilesApp):
    """The batches under test with the files that they read and write, and a client of both with the admin key."""

    def __init__(
        self,
        home: Path,
        *,
        concurrency: int = 4,
        max_requests: int = 100,
        max_unfinished: int = 3,
        hook: Hook | None = None,
        embedder: Any = None,
    ) -> None:
        super().__init__(home)
        self.engine = PromptEngine()
        self.trouble: str | None = None
        self.base_troubles: dict[str, str] = {}
        self.limiter = KeyLimiter()
        self.admitted: list[AdmissionRequest] = []
        queue = AdmissionQueue(Policy(width=64, common=64, slots=None, queue_size=64, background_width=64))
        enter = queue.enter

        async def enter_and_note(request: AdmissionRequest, deadline: float) -> Any:
            self.admitted.append(request)
            return await enter(request, deadline)

        queue.enter = enter_and_note  # type: ignore[method-assign]
        queue.try_enter = lambda request: None  # type: ignore[method-assign]
        self.world = World(self.keys.authenticator, gate=queue, limiter=self.limiter, hook=hook, embedder=embedder)
        self.world.engine.send = self.engine.send  # type: ignore[method-assign, assignment]
        self.budget: HatrackError | None = None
        context = RunContext(
            database=self.database,
            files=self.files,
            root=home / "batches",
            ask=DataPath(self.world.app),
            keys=self.keys.authenticator,
            check_budget=self._check_budget,
            engine_trouble=lambda: self.trouble,
            slots=asyncio.Semaphore(concurrency),
            concurrency=concurrency,
            answered={"completed": 0, "failed": 0},
            base_trouble=lambda base: self.base_troubles.get(base),
            max_requests=max_requests,
            max_body=4096,
        )
        self.context = context
        self.batches = Batches(context, max_unfinished=max_unfinished, max_file_bytes=512 * 1024)

    def _check_budget(self, caller: Caller) -> None:
        assert not caller.background, "a batch is on its creator's bill, as any other request"
        if self.budget is not None:
            raise self.budget

    def app(self) -> FastAPI:
        app = super().app()
        app.state.batches = self.batches
        add_routes(app, router)
        return app

    @asynccontextmanager
    async def run(self) -> AsyncIterator[BatchesApp]:
        async with super().run(), self.batches.running():
            yield self

    # what a client does

    async def upload(self, lines: Iterable[dict[str, Any] | bytes], **more: Any) -> str:
        """The id of an input file with these lines."""
        content = b"".join(line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines)
        return await self.made(content, "batch", **more)

    async def create(self, file_id: str, *, key: str | None = None, **more: Any) -> dict[str, Any]:
        """A new batch of chats."""
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **more}
        answer = await self.http.post("/v1/batches", json=body, headers=bearer(key))
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def start(self, *questions: str, key: str | None = None, **more: Any) -> str:
        """The id of a new batch that asks these questions."""
        file_id = await self.upload([line(question) for question in questions], key=key)
        return str((await self.create(file_id, key=key, **more))["id"])

    async def batch(self, batch_id: str, key: str | None = None) -> dict[str, Any]:
        answer = await self.http.get(f"/v1/batches/{batch_id}", headers=bearer(key))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def comes_to(
        self, batch_id: str, wanted: Callable[[dict[str, Any]], object], key: str | None = None
    ) -> dict[str, Any]:
        """The batch once ``wanted`` is true of it."""
        async with asyncio.timeout(LIMIT_S):
            while not wanted(batch := await self.batch(batch_id, key)):  # noqa: ASYNC110 (a state over HTTP)
                await asyncio.sleep(0.005)
        return batch

    async def ended(self, batch_id: str, key: str | None = None) -> dict[str, Any]:
        """The batch once it has ended."""
        final = ("failed", "completed", "expired", "cancelled")
        return await self.comes_to(batch_id, lambda batch: batch["status"] in final, key)

    async def lines_of(self, file_id: str | None, key: str | None = None) -> dict[str, dict[str, Any]]:
        """The lines of a result file by their `custom_id`; none without a file."""
        if file_id is None:
            return {}
        answer = await self.http.get(f"/v1/files/{file_id}/content", headers=bearer(key))
        assert answer.status_code == 200, answer.text
        lines = [orjson.loads(text) for text in answer.content.splitlines()]
        found = {line["custom_id"]: line for line in lines}
        assert len(found) == len(lines), "no request has two results"
        return found


def line(question: str, *, custom_id: str | None = None, model: str = BASE, **body: Any) -> dict[str, Any]:
    """A line that asks a question, under its own name."""
    asked = {"model": model, "messages": [{"role": "user", "content": question}], **body}
    return {"custom_id": custom_id or question, "method": "POST", "url": CHAT, "body": asked}


def text_of(result: dict[str, Any]) -> str:
    return str(result["response"]["body"]["choices"][0]["message"]["content"])
