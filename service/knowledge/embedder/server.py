"""The embedder's HTTP: ``POST /embed`` for questions, ``POST /index`` for documents, ``POST /embeddings`` for callers.

See ``service.knowledge.wire``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from aiohttp import web

from service.knowledge.documents.blocks import Block, DocumentError
from service.knowledge.documents.chunks import split
from service.knowledge.embedder.document_reader import DocumentReader, ReaderEnded
from service.knowledge.embedder.model import EmbeddingModel, InputRefused, ModelBusy, ModelError
from service.knowledge.segment import Segment, Vectors
from service.knowledge.terms import Analyzer
from service.knowledge.text import PassageText
from service.knowledge.wire import MAX_INPUT_BYTES, TOKENS_HEADER, pack, pack_batch, pack_vectors

BATCH: Final = 64
"""Passages in a frame, and in a segment of the store."""
STEP: Final = 8
"""Passages that are embedded at once."""
MAX_QUERIES: Final = 16
"""Questions that are embedded together, where so many wait."""
ROWS: Final = 64
"""Vectors that are written as JSON at once: Python's other threads wait meanwhile."""
_LOG: Final = logging.getLogger("hatrack.embedder")


class EmbedderServer:
    """Answers the gateway.

    Args:
        model: Makes the vectors.
        document_reader: Reads the documents.
    """

    def __init__(self, model: EmbeddingModel, document_reader: DocumentReader) -> None:
        self._model = model
        self._reader = document_reader
        self._analyzer = Analyzer()
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._indexing = asyncio.Lock()

    def app(self) -> web.Application:
        """The aiohttp application with the server's routes."""
        app = web.Application(client_max_size=MAX_INPUT_BYTES)
        app.add_routes([web.get("/", self.alive), web.post("/embed", self.embed), web.post("/index", self.index)])
        app.add_routes([web.post("/embeddings", self.embeddings)])
        return app

    async def alive(self, _request: web.Request) -> web.Response:
        """Answers 200; the server listens only once the model is loaded."""
        return web.json_response({"status": "ready"})

    async def embed(self, request: web.Request) -> web.Response:
        """``{"text"}``: the vector of a question."""
        text = (await request.json())["text"]
        future: asyncio.Future[Vectors] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._answer())
        try:
            vector = await future
        except ModelError as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.Response(body=pack_vectors(vector[None]))

    async def _answer(self) -> None:
        """Embed what waits, together, until nothing does."""
        while self._waiting:
            # whoever has left is not answered
            waiting = [(text, future) for text, future in self._waiting if not future.done()]
            batch, self._waiting = waiting[:MAX_QUERIES], waiting[MAX_QUERIES:]
            if not batch:
                return
            try:
                vectors = await self._model.embed([text for text, _ in batch], query=True)
            except Exception as error:  # whatever it is, those who wait must hear of it
                _LOG.exception("embedding questions failed")
                failure = error if isinstance(error, ModelError) else ModelError(type(error).__name__)
                for _, future in batch:
                    if not future.done():
                        future.set_exception(failure)
                continue
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)

    async def embeddings(self, request: web.Request) -> web.Response:
        """A caller's request for embeddings, as ``service.knowledge.wire`` has it: the answer that the caller gets."""
        body: dict[str, Any] = await asyncio.to_thread(orjson.loads, await request.read())
        try:
            vectors, tokens = await self._model.embed_inputs(body["input"], body["dimensions"])
        except InputRefused as error:
            param = error.field if error.at is None or body["single"] else f"{error.field}.{error.at}"
            refusal = {"error": f"`{param}` {error}", "param": param, "code": error.code}
            return web.json_response(refusal, status=400)
        except ModelError as error:
            return web.json_response({"error": str(error)}, status=503 if isinstance(error, ModelBusy) else 502)
        answer = await asyncio.to_thread(_answer_of, vectors, tokens, body["model"], body["base64"])
        return web.Response(body=answer, content_type="application/json", headers={TOKENS_HEADER: str(tokens)})

    async def index(self, request: web.Request) -> web.StreamResponse:
        """``{"path", "filename", "size", "overlap"}``: the passages of a document with their arrays, frame by frame."""
        body: dict[str, Any] = await request.json()
        response = web.StreamResponse()
        await response.prepare(request)
        async with self._indexing:
            try:
                blocks = await self._reader.blocks(Path(body["path"]), body["filename"])
                passages = await asyncio.to_thread(self._cut, blocks, body["size"], body["overlap"])
                for batch in _batches(passages):
                    segment = await self._segment(batch)
                    await response.write(pack_batch(segment, batch, len(passages)))
                last: dict[str, Any] = {"end": True}
            except DocumentError as error:
                last = {"end": True, "error": [error.code, error.message]}
            except ReaderEnded as error:
                last = {"end": True, "reader": str(error)}
            except ModelBusy as error:
                last = {"end": True, "busy": str(error)}  # says nothing about the document
            except ModelError as error:
                last = {"end": True, "error": ["server_error", str(error)]}
            await response.write(pack(last))
        await response.write_eof()
        return response

    def _cut(self, blocks: Sequence[Block], size: int, overlap: int) -> list[PassageText]:
        return list(split(blocks, self._model.tokens, size=size, overlap=overlap))

    async def _segment(self, passages: Sequence[PassageText]) -> Segment:
        texts = [passage.searched if passage.turns else passage.whole for passage in passages]
        bags = await asyncio.to_thread(self._bags, passages)
        vectors = [await self._model.embed(texts[at : at + STEP], query=False) for at in range(0, len(texts), STEP)]
        sizes = [len(terms) for terms, _ in bags]
        return Segment(
            vectors=np.concatenate(vectors),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
            terms=np.concatenate([terms for terms, _ in bags]),
            counts=np.concatenate([counts for _, counts in bags]),
        )

    def _bags(self, passages: Sequence[PassageText]) -> list[Any]:
        return [self._analyzer.bag(passage.heading, passage.searched) for passage in passages]


def _batches(passages: Sequence[PassageText]) -> Iterator[Sequence[PassageText]]:
    for at in range(0, len(passages), BATCH):
        yield passages[at : at + BATCH]


def _answer_of(vectors: Vectors, tokens: int, model: str, as_base64: bool) -> bytes:
    """OpenAI's list of embeddings, JSON; base64 is that of little-endian float32."""
    rows: list[bytes] = []
    for begin in range(0, len(vectors), ROWS):
        some = vectors[begin : begin + ROWS].astype("<f4", copy=False)
        shown = [base64.b64encode(row.tobytes()).decode() for row in some] if as_base64 else list(some)
        data = [{"object": "embedding", "index": at, "embedding": value} for at, value in enumerate(shown, begin)]
        rows.append(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = orjson.dumps({"model": model, "usage": usage})
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + rest[1:]
