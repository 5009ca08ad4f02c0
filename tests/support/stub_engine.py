"""A process that speaks vLLM's HTTP as far as Hatrack needs it, and streams tokens at a steady pace, as from a batch.

    HATRACK_BASE_MODEL=… HATRACK_HOME=… python -m tests.support.stub_engine SOCKET

It takes the settings of the agent whose engine it is, so that its report fits.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from typing import Any

import orjson
from aiohttp import web

from service.config import Settings, load_settings
from service.engine.assemble import describe_base
from service.engine.config import EngineConfig
from service.engine.contract import PLUGIN_PROTOCOL, PLUGIN_ROUTE
from service.engine.identity import ensure_store_id, plugin_digest

STEP_S = 0.01
SCORED_TOKENS = 12


class StubEngine:
    """Answers every model; scores adapters' texts a little lower than the base's."""

    def __init__(self, settings: Settings) -> None:
        config, base = EngineConfig.from_settings(settings), describe_base(settings)
        config.store.mkdir(parents=True, exist_ok=True)
        self._base_name = config.base_name
        self._loaded: dict[str, None] = {}
        self._tokens = 0
        self._steps_end: asyncio.Event | None = None
        self._report: dict[str, Any] = {
            "protocol": PLUGIN_PROTOCOL,
            "plugin": plugin_digest(),
            "boot": secrets.token_hex(8),
            "signature": None,
            "base": base.fingerprint.model_dump(),
            "vllm": base.fingerprint.engine_version,
            "names": [config.base_name],
            "store": str(config.store),
            "store_id": ensure_store_id(config.store),
            "slots": config.slots,
            "max_rank": config.max_rank,
            "context": config.context or 2048,
        }

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get(PLUGIN_ROUTE, self._tell)
        app.router.add_get("/v1/models", self._tell)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        return app

    async def _tell(self, _request: web.Request) -> web.Response:
        return web.json_response({**self._report, "asked": len(self._loaded), "loaded": list(self._loaded)})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=f"vllm:generation_tokens_total {self._tokens}\n")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] != self._base_name:
            self._loaded[body["model"]] = None
        if "prompt_logprobs" in body:
            return web.json_response({"choices": [self._scored(n, body) for n, _ in enumerate(body["prompt"])]})
        tokens = body.get("max_tokens", 16)
        usage = {"prompt_tokens": 4, "completion_tokens": tokens, "total_tokens": 4 + tokens}
        if not body.get("stream"):
            await asyncio.sleep(STEP_S * tokens)
            choice = {"index": 0, "text": "a " * tokens, "finish_reason": "length"}
            answer = {"id": "c", "object": "text_completion", "model": body["model"], "choices": [choice]}
            return web.Response(body=orjson.dumps({**answer, "usage": usage}), content_type="application/json")
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        for _ in range(tokens):
            await self._step()
            self._tokens += 1
            choice = {"index": 0, "text": "a ", "finish_reason": None}
            await stream.write(_event({"id": "c", "model": body["model"], "choices": [choice]}))
        await stream.write(_event({"id": "c", "model": body["model"], "choices": [], "usage": usage}))
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _step(self) -> None:
        """Wait for the end of the step that runs: it has a token for each stream, as a batch has."""
        if self._steps_end is None:
            self._steps_end = asyncio.Event()
            asyncio.get_running_loop().call_later(STEP_S, self._end_step)
        await self._steps_end.wait()

    def _end_step(self) -> None:
        if self._steps_end is not None:
            self._steps_end.set()
        self._steps_end = None

    def _scored(self, text: int, body: dict[str, Any]) -> dict[str, Any]:
        shift = 0.0 if body["model"] == self._base_name else -0.5
        positions = [{"5": {"logprob": -2.0 - 0.1 * text - 0.01 * token + shift}} for token in range(SCORED_TOKENS)]
        return {"index": text, "prompt_logprobs": [None, *positions]}


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


if __name__ == "__main__":
    web.run_app(
        StubEngine(load_settings()).app(), path=sys.argv[1], print=None, handler_cancellation=True, shutdown_timeout=0.1
    )
