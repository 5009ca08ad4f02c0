"""The embedder's process; the gateway starts it.

    python -m service.knowledge.embedder --socket PATH [--threads N] [--model DIRECTORY | --url URL --model NAME]

The first line of its standard input is the key for the endpoint at ``--url``, or empty. It ends when its standard input
does: that is a pipe which the gateway holds, so it goes with the gateway, however that went.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from aiohttp import web

from service.knowledge.embedder.document_reader import DocumentReader
from service.knowledge.embedder.model import EmbeddingModel, LocalModel, ModelError, directory_of
from service.knowledge.embedder.remote import RemoteModel
from service.knowledge.embedder.server import EmbedderServer

NO_MODEL: Final = 3
"""Exit code: the model cannot be loaded."""


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m service.knowledge.embedder")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="")
    parser.add_argument("--url", default="")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    key = _first_line()
    # before the model is loaded: a gateway may end meanwhile
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        model = _model(arguments.url, arguments.model, key, arguments.threads)
    except ModelError as error:
        logging.getLogger("hatrack.embedder").error("%s", error)
        return NO_MODEL
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(model, arguments.socket))
    return 0


def _model(url: str, model: str, key: str, threads: int) -> EmbeddingModel:
    if url:
        return RemoteModel(url, model, key or None)
    return LocalModel(directory_of(model), threads=threads)


async def _serve(model: EmbeddingModel, path: Path) -> None:
    document_reader = DocumentReader()
    runner = web.AppRunner(EmbedderServer(model, document_reader).app(), handler_cancellation=True)
    await runner.setup()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        await web.SockSite(runner, listener).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            await document_reader.close()
            await model.close()


# read by the descriptor: a buffered reader holds a lock that the interpreter waits for at its end


def _first_line() -> str:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line.decode().strip()


def _leave_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
