"""The tests' stub of an engine, which writes down the model of each request as it comes.

HATRACK_BASE_MODEL=… HATRACK_HOME=… python -m loadtests.fronts.engine SOCKET FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web
from aiohttp.typedefs import Middleware

from service.config import load_settings
from tests.support.stub_engine import StubEngine


def write_down(models: TextIO) -> Middleware:
    """A middleware that notes who is asked for; a proof's probes, which ask for log-probabilities, are left out."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json() if request.method == "POST" else {}
        if "model" in body and "prompt_logprobs" not in body:
            models.write(f"{body['model']}\n")
        answer: web.StreamResponse = await handler(request)
        return answer

    return middleware


if __name__ == "__main__":
    app = StubEngine(load_settings()).app()
    with Path(sys.argv[2]).open("a", buffering=1) as file:
        app.middlewares.append(write_down(file))
        web.run_app(app, path=sys.argv[1], print=None, handler_cancellation=True, shutdown_timeout=0.1)
