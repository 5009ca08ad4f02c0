"""A gateway that serves the console and answers as a test tells it, and a real Chromium on it."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from service.console.routes import console
from service.registry.schemas import AdapterVersion
from tests.support.asgi import web_server
from tests.support.browser import Browser, browser
from tests.support.legibility import check_legible

START_S = 60.0
FINGERPRINT = {"engine_version": "0.32.0", "dtype": "bfloat16"}
METRICS = """hatrack_engine_slots{engine="small"} 8
hatrack_engine_slots{engine="large"} 16
hatrack_engine_slots_in_use{engine="large"} 3
hatrack_admission_queued{class="caller",engine="large"} 5
hatrack_admission_queued{class="background",engine="large"} 2
hatrack_requests_in_flight 4
"""
NONE: dict[str, Any] = {"data": [], "has_more": False}


class Stream:
    """An answer that is sent piece by piece, as the test says: an event stream with these headers."""

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._pieces: queue.Queue[str | None] = queue.Queue()

    def send(self, *events: dict[str, Any]) -> None:
        for event in events:
            self._pieces.put(f"data: {json.dumps(event)}\n\n")

    def end(self) -> None:
        self._pieces.put("data: [DONE]\n\n")
        self._pieces.put(None)

    async def pieces(self) -> AsyncIterator[str]:
        while (piece := await asyncio.to_thread(self._pieces.get, timeout=START_S)) is not None:
            yield piece


class Held:
    """An answer that waits for the test: `read` before the request's body is read, `answer` before it is sent."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.read, self.answer = threading.Event(), threading.Event()


class Answers:
    """A gateway that serves the console and answers as it is told: `told` has the answers by method and path, each used
    once but for the last one; `asked` has what was asked, in order; by method and path `queries` has the query
    parameters of each request, and `bodies` the last body."""

    def __init__(self) -> None:
        self.told: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self.queries: dict[str, list[dict[str, str]]] = {}
        self.bodies: dict[str, bytes] = {}
        self.url = ""

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.include_router(console())

        @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
        async def answer(request: Request, path: str) -> Response:
            asked = f"{request.method} /{path}"
            self.asked.append(asked)
            self.queries.setdefault(asked, []).append(dict(request.query_params))
            told = self.told[asked]
            content = told.pop(0) if len(told) > 1 else told[0]
            held = content if isinstance(content, Held) else None
            if held:
                await asyncio.to_thread(held.read.wait, START_S)
            self.bodies[asked] = await request.body()
            if held:
                await asyncio.to_thread(held.answer.wait, START_S)
                content = held.content
            if isinstance(content, Stream):
                return StreamingResponse(content.pieces(), headers=content.headers, media_type="text/event-stream")
            if isinstance(content, str):
                return PlainTextResponse(content)
            status, content = content if isinstance(content, tuple) else (200, content)
            return JSONResponse(content, status)

        return app


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Answers, Browser]]:
    """The gateway of this file, and a browser."""
    answers = Answers()
    server: uvicorn.Server = web_server(answers.app(), port=0, log_level="error", ws="none")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        answers.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with browser() as tab:
            yield answers, tab
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def answers(served: tuple[Answers, Browser]) -> Answers:
    """The gateway, which knows no answer yet."""
    served[0].told, served[0].asked, served[0].queries, served[0].bodies = {}, [], {}, {}
    return served[0]


@pytest.fixture
def page(served: tuple[Answers, Browser], answers: Answers) -> Iterator[Browser]:
    """The console's page, loaded anew and not signed in. What it shows at the end must be legible, light and dark."""
    tab = served[1]
    tab.open("about:blank")
    tab.open(f"{answers.url}/console")
    tab.wait("document.querySelector('#key')")
    tab.problems.clear()
    yield tab
    check_legible(tab)


def show(page: Browser, module: str, component: str, **properties: Any) -> None:
    """Show one component alone; it notes its `onDone` and `onClose` in `window.called`."""
    page.run(
        f"""(async () => {{
        const {{ html, render }} = await import("/console/vendor/preact.js");
        const {{ {component} }} = await import("/console/{module}");
        window.called = [];
        const more = {{ onDone: () => window.called.push("done"), onClose: () => window.called.push("close") }};
        const root = document.createElement("div");
        document.body.replaceChildren(root);
        render(html`<${{{component}}} ...${{{json.dumps(properties)}}} ...${{more}} />`, root);
        }})()"""
    )


# objects in the shapes of the API


def models(*bases: str) -> dict[str, Any]:
    """`GET /v1/models` with these bases, an adapter on the last one, and the embedder."""
    cards = [{"id": name, "type": "chat", "parent": None} for name in bases]
    cards.append({"id": "voice", "type": "chat", "parent": bases[-1]})
    return {"data": [*cards, {"id": "minilm", "type": "embedding", "parent": None}]}


def version(number: int, **more: Any) -> dict[str, Any]:
    """A ready version with weights on the base `large`, in the API's shape."""
    made: dict[str, Any] = dict.fromkeys(AdapterVersion.model_fields)
    made |= {"adapter": "voice", "version": number, "digest": "0" * 64, "state": "ready", "servable": "ok"}
    made |= {"aliases": [], "rank": 8, "alpha": 16, "target_modules": [], "bytes": 2**20, "base": FINGERPRINT}
    made |= {"base_name": "large", "created_at": 0, "settings": {}, "metadata": {}, "warnings": []}
    return made | more


def adapter(*versions: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The adapter `voice`, whose first version is live."""
    made = {"name": "voice", "created_at": 0, "aliases": {"live": 1}, "splits": {}, "pinned": False}
    return made | {"versions": list(versions)} | more


def listed(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"data": list(entries), "has_more": False}
