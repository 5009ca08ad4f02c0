"""The trainer: `python -m trainer --home H --socket S --gateway URL --base DIR --base-name NAME --max-rank N`.

It answers the gateway on a Unix socket that nobody else may open, or on a port (`--port`) to whoever shows the shared
secret, and runs fine-tuning jobs in processes of their own. SIGTERM ends it politely: jobs checkpoint and go on at the
next start. On a socket it also ends when the process that started it has gone.

Exit codes: 0 stopped · 2 a setting or an argument is wrong · 3 another trainer has this home.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn

from adapters.errors import AdapterError
from trainer.app import Trainer, create_app
from trainer.config import Installation, Settings, load_settings
from trainer.errors import SettingsError
from trainer.finetune.capacity import BaseModelInfo

BAD_SETTINGS: Final = 2
HOME_LOCKED: Final = 3
PARENT_POLL_S: Final = 0.5
GRACEFUL_SHUTDOWN_S: Final = 1
"""How long requests may take to end once the trainer is to stop, s: streams of events come back to the next one."""
_LOG = logging.getLogger("hatrack.trainer")


class Server(uvicorn.Server):
    """One that leaves signals to us: uvicorn would raise them again at its end, and the exit code would not be 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def stop(self) -> None:
        """End politely, soon."""
        self.should_exit = True


class HomeLocked(Exception):
    """Another trainer is at work in this home."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # what is written here is for nobody else's eyes: keys, data, logs
    parent = os.getppid()
    try:
        settings = load_settings()
        installation = _installation(options, settings)
        base = BaseModelInfo.read(installation.base)
    except SettingsError as error:
        return _fail(str(error), BAD_SETTINGS)
    except AdapterError as error:
        return _fail(error.message, BAD_SETTINGS)
    except (OSError, KeyError, ValueError) as error:
        return _fail(f"{options.base} is no checkpoint that can be trained on: {error!r}", BAD_SETTINGS)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with _lock_home(installation.directory):
            trainer = Trainer.build(settings, installation, base)
            listener = _unix(options.socket) if options.socket else _tcp(options.host, options.port)
            asyncio.run(_serve(trainer, settings, listener, parent if options.socket else None))
    except SettingsError as error:
        return _fail(str(error), BAD_SETTINGS)
    except HomeLocked as error:
        return _fail(str(error), HOME_LOCKED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Runs fine-tuning jobs for a gateway.")
    parser.add_argument("--home", type=Path, required=True, help="directory of all state; the trainer's is trainer/")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="Unix socket to listen on")
    where.add_argument("--port", type=int, help="port to listen on, instead; needs HATRACK_TRAINER_SECRET")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, with --port")
    parser.add_argument("--gateway", required=True, help="the gateway's URL, as workers reach it")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint directory of the base model")
    parser.add_argument("--base-name", required=True, help="the name that the base is served under")
    parser.add_argument("--max-rank", type=int, required=True, help="largest rank that the engine serves")
    parser.add_argument("--context", type=int, help="the engine's context, tokens; unset: the base's own")
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="what the engine computes in")
    parser.add_argument("--engine-device", choices=("cpu", "cuda"), default="cpu", help="what the engine runs on")
    parser.add_argument("--engine-memory", type=float, default=0.85, help="share of its GPU that the engine takes")
    return parser


def _installation(options: argparse.Namespace, settings: Settings) -> Installation:
    if options.port is not None and settings.secret is None:
        raise SettingsError("with --port HATRACK_TRAINER_SECRET is needed: whoever reaches a port is not the gateway")
    return Installation(
        home=options.home.absolute(),
        gateway=options.gateway,
        base=options.base.absolute(),
        base_name=options.base_name,
        max_rank=options.max_rank,
        context=options.context,
        dtype=options.dtype,
        engine_device=options.engine_device,
        engine_memory=options.engine_memory,
    )


@contextmanager
def _lock_home(directory: Path) -> Iterator[None]:
    """Be the only trainer of this home. Raises HomeLocked."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    lock = os.open(directory / "trainer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HomeLocked(f"another trainer is at work in {directory}") from None
    else:
        yield
    finally:
        os.close(lock)


def _unix(path: Path) -> socket.socket:
    """Listen on a socket that nobody but this user may open. Whoever holds the home's lock may take its place."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # from its first moment on: a mode that is set later comes too late
    try:
        listener.bind(str(path))
    except OSError as error:
        raise SettingsError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    mode = path.stat().st_mode & 0o777
    if mode != 0o600:
        raise SettingsError(f"{path} could be opened by others (mode {mode:o}): its file system keeps no modes")
    return listener


def _tcp(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error


async def _serve(trainer: Trainer, settings: Settings, listener: socket.socket, parent: int | None) -> None:
    config = uvicorn.Config(
        create_app(trainer, settings),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )
    server = Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    watch = asyncio.create_task(_stop_with_parent(parent, server)) if parent is not None else None
    try:
        await server.serve(sockets=[listener])
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
    if not server.started:
        raise SettingsError("the trainer could not start; its log has the reason")


async def _stop_with_parent(parent: int, server: Server) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 (a parent's end sends nothing that could be waited for)
        await asyncio.sleep(PARENT_POLL_S)
    _LOG.warning("the process that started the trainer has gone; it stops")
    server.stop()


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"trainer: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
