"""An engine made of bytes, and a client that speaks ASGI to the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import orjson

from service.access.authentication import Authenticator
from service.access.limits import KeyLimiter
from service.admission.policy import Policy
from service.admission.queue import AdmissionQueue
from service.config import Settings
from service.errors import HatrackError
from service.grounding.hook import Hook
from service.inference.dispatch import Dispatch
from service.inference.embedding import Embedder, EmbeddingRequests
from service.inference.pipeline import Pipeline
from service.inference.routes import InferenceApp
from service.objects.cache import Copies
from service.registry.catalog import AdapterEntry, Catalog, CatalogSnapshot, Servable, VersionEntry, VersionSettings
from service.telemetry.record import Record

KEY = "a-key-of-the-tests"
BASE = "smol"
EMBEDDER = "minilm"
DIGESTS = {number: f"{number:x}" * 64 for number in (1, 2, 3)}
PIRATE = VersionSettings(system_prompt="You are a pirate.", sampling={"temperature": 0.25, "max_tokens": 7})


def event(**payload: Any) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def token(text: str, model: str = DIGESTS[3]) -> bytes:
    return event(id="c1", model=model, choices=[{"index": 0, "delta": {"content": text}}])


def usage_event(model: str = DIGESTS[3]) -> bytes:
    counts = {"prompt_tokens": 11, "total_tokens": 16, "completion_tokens": 5}
    return event(id="c1", model=model, choices=[], usage={**counts, "prompt_tokens_details": {"cached_tokens": 4}})


DONE = b"data: [DONE]\n\n"


def completion(text: str, model: str = DIGESTS[3]) -> bytes:
    return orjson.dumps(
        {
            "id": "c1",
            "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 11, "total_tokens": 16, "completion_tokens": 5},
        }
    )


def answer_of(path: str) -> bytes:
    """A whole answer that any of the routes that generate, and embeddings, may give."""
    members = {"/v1/responses": "output", "/v1/messages": "content", "/v1/embeddings": "data"}
    return orjson.dumps({"id": "c1", "model": DIGESTS[3], members.get(path, "choices"): []})


@dataclass
class Asked:
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class FakeEngine:
    """Answers every request with ``status`` and ``chunks``; an Event among them holds the answer there until set."""

    chunks: list[bytes | asyncio.Event | HatrackError] = field(default_factory=list)
    status: int = 200
    down: HatrackError | None = None
    opens: asyncio.Event | None = None
    """No status comes before it is set; None: it comes at once."""
    asked: list[Asked] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0

    async def send(self, path: str, body: bytes, headers: dict[str, str]) -> FakeResponse:
        if self.down is not None:
            raise self.down
        self.asked.append(Asked(path, orjson.loads(body), headers))
        response = FakeResponse(self.status, self.chunks, self)
        self.in_flight += 1
        try:
            if self.opens is not None:
                await self.opens.wait()
        except BaseException:
            response.close()
            raise
        return response

    @property
    def last(self) -> Asked:
        return self.asked[-1]


class FakeResponse:
    def __init__(self, status: int, pieces: list[bytes | asyncio.Event | HatrackError], engine: FakeEngine) -> None:
        self._engine = engine
        self.status = status
        self.headers: Mapping[str, str] = {}
        self.ended = False
        self._pieces = pieces
        self._rest = self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, HatrackError):
                raise piece
            else:
                yield piece
        self.ended = True

    async def pass_to(self, take: Callable[[bytes], bool]) -> bool:
        async for chunk in self._rest:
            if not take(chunk):
                return False
        return True

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._rest])

    def close(self) -> None:
        self._engine.in_flight -= 1
        if not self.ended:
            self._engine.aborted.set()


def version(number: int, settings: VersionSettings | None = None, servable: Servable = Servable.OK) -> VersionEntry:
    return VersionEntry(number, DIGESTS[number], settings or VersionSettings(), servable, created_at=1000 + number)


def catalog() -> Catalog:
    found = Catalog(BASE, base_created_at=500)
    voices = {1: version(1), 2: version(2, servable=Servable.OTHER_BASE), 3: version(3, PIRATE)}
    entries = {
        ("default", "younger"): AdapterEntry("younger", 900, MappingProxyType({1: version(1)}), {"live": 1}),
        ("default", "voice"): AdapterEntry("voice", 800, MappingProxyType(voices), {"live": 3, "canary": 1}),
        ("default", "unborn"): AdapterEntry("unborn", 700, MappingProxyType({1: version(1)}), {}),
        ("other", "secret"): AdapterEntry("secret", 600, MappingProxyType({1: version(1)}), {"live": 1}),
    }
    found.replace(CatalogSnapshot(MappingProxyType(entries)))
    return found


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        return error


class World:
    """An app in front of a fake engine."""

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        *,
        gate: AdmissionQueue | None = None,
        limiter: KeyLimiter | None = None,
        hook: Hook | None = None,
        counting: AdmissionQueue | None = None,
        embedder: Embedder | None = None,
        copies: Copies | None = None,
        **settings: Any,
    ) -> None:
        settings.setdefault("engine_context", 2048)
        self.settings = Settings(engine_device="cpu", **settings)
        self.engine = FakeEngine()
        self.records: list[Record] = []
        self.suspects: list[str] = []
        self.signs = 0
        self.catalog = catalog()
        self.embedding = AdmissionQueue(Policy.for_embedding(self.settings))
        embeddings = None
        if embedder is not None:
            self.catalog.embedder_name = EMBEDDER
            embeddings = EmbeddingRequests(self.settings, embedder, self.embedding)
        dispatch = Dispatch(
            self.settings,
            self.engine,
            self.catalog.base_name,
            embedder_name=self.catalog.embedder_name,
            suspect=self.suspects.append,
            saw_tokens=self._sign,
            admission_queue=gate,
            counting=counting,
            copies=copies,
        )
        pipeline = Pipeline(
            self.settings,
            authenticator or Authenticator(KEY),
            self.catalog,
            dispatch,
            account=self.records.append,
            limiter=limiter,
            hook=hook,
            embeddings=embeddings,
        )
        self.app = InferenceApp(self.settings, pipeline)

    def _sign(self) -> None:
        self.signs += 1

    async def chat(self, **fields: Any) -> Answer:
        """A chat request that is valid but for what ``fields`` say."""
        return await self.ask("/v1/chat/completions", chat_body(**fields))

    async def ask(
        self, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] | None = None
    ) -> Answer:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.ask_in_parts(path, [raw], method=method, headers=headers)

    async def ask_in_parts(
        self,
        path: str,
        parts: list[bytes],
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        leaves: asyncio.Event | None = None,
        answer: Answer | None = None,
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Answer:
        """One request, whose client leaves when ``leaves`` is set.

        Args:
            answer: Is filled as the answer comes.
            write: Called with each part of it.
        """
        given = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        answer, left = answer or Answer(), list(parts)

        async def receive() -> dict[str, Any]:
            if left:
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
            await (leaves or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            elif message["body"]:
                if write is not None:
                    await write(message["body"])
                answer.parts.append(message["body"])

        await self.app(scope, receive, send)
        return answer


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "voice", "messages": [{"role": "user", "content": "Hello"}], **fields}


async def until(true: Callable[[], object], within_s: float = 240.0) -> None:
    """Wait until ``true`` says so."""
    end = asyncio.get_running_loop().time() + within_s
    for _ in iter(int, 1):
        if true():
            return
        assert asyncio.get_running_loop().time() < end, "it did not come true in time"
        await asyncio.sleep(0.002)


def event_error(body: bytes) -> dict[str, Any]:
    """The error in the last event of a stream, in any dialect."""
    event = orjson.loads(body.split(b"\n\n")[-2].rpartition(b"data: ")[2])
    error: dict[str, Any] = event["error"]
    return error


def last_error(body: bytes) -> dict[str, Any]:
    """The error in the last event of a stream."""
    last = body.split(b"\n\n")[-2]
    assert last.startswith(b"data: {")
    error: dict[str, Any] = orjson.loads(last[6:])["error"]
    return error
