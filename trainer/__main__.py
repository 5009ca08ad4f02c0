"""The trainer: `python -m trainer --home H --socket S --gateway URL --base DIR --base-name NAME --max-rank N`.

It serves the gateway on a Unix socket that only its user can open, or on a port (`--port`) with the shared secret, and
runs each fine-tuning job in its own process. On SIGTERM it stops gracefully: jobs write checkpoints and resume at the
next start. On a socket it also stops when its parent process has exited.

Exit codes: 0 stopped · 2 invalid setting or argument · 3 another trainer uses this home.
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

from adapters.database.backend import DatabaseFault
from adapters.errors import AdapterError
from trainer.app import Trainer, create_app
from trainer.config import Settings, load_settings
from trainer.database import FILE, Database
from trainer.errors import SettingsError
from trainer.finetune.capacity import BaseModelInfo
from trainer.installation import Installation, OtherBase

BAD_SETTINGS: Final = 2
HOME_LOCKED: Final = 3
PARENT_POLL_S: Final = 0.5
GRACEFUL_SHUTDOWN_S: Final = 1
"""How long open requests may take to finish on shutdown, s; event streams reconnect to the next trainer."""
_LOG = logging.getLogger("hatrack.trainer")


class Server(uvicorn.Server):
    """A server without signal handlers: uvicorn re-raises signals on exit, so that the exit code would not be 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield

    def stop(self) -> None:
        """Request a graceful shutdown."""
        self.should_exit = True


class HomeLocked(Exception):
    """Another trainer uses this home."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # keys, data and logs must not be readable by other users
    parent = os.getppid()
    try:
        settings = load_settings()
        installation = _installation(options, settings)
        base = BaseModelInfo.read(installation.base)
        others = {other.base_name: BaseModelInfo.read(other.base) for other in installation.others}
    except SettingsError as error:
        return _fail(str(error), BAD_SETTINGS)
    except AdapterError as error:
        return _fail(error.message, BAD_SETTINGS)
    except (OSError, KeyError, ValueError) as error:
        return _fail(f"{options.base} is not a checkpoint that can be trained: {error!r}", BAD_SETTINGS)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with _lock_home(installation.directory):
            database = Database(installation.directory / FILE, settings.database_address)
            database.check_schema()
            _refuse_held(database)
            trainer = Trainer.build(settings, installation, base, others=others)
            listener = _unix(options.socket) if options.socket else _tcp(options.host, options.port)
            asyncio.run(_serve(trainer, settings, listener, parent if options.socket else None))
    except SettingsError as error:
        return _fail(str(error), BAD_SETTINGS)
    except HomeLocked as error:
        return _fail(str(error), HOME_LOCKED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Runs fine-tuning jobs for a gateway.")
    parser.add_argument("--home", type=Path, required=True, help="state directory; the trainer uses trainer/ in it")
    address = parser.add_mutually_exclusive_group(required=True)
    address.add_argument("--socket", type=Path, help="Unix socket to listen on")
    address.add_argument("--port", type=int, help="port to listen on instead; requires HATRACK_TRAINER_SECRET")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on, with --port")
    parser.add_argument("--gateway", required=True, help="URL at which workers reach the gateway")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint directory of the base model")
    parser.add_argument("--base-name", required=True, help="name under which the base is served")
    parser.add_argument(
        "--other-base",
        type=OtherBase.parse,
        action="append",
        default=[],
        metavar="JSON",
        help="a further base of the gateway: an object with base, base_name, max_rank, context and dtype",
    )
    parser.add_argument("--max-rank", type=int, required=True, help="maximum LoRA rank of the engine")
    parser.add_argument("--context", type=int, help="the engine's context in tokens; default: the base's own")
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="data type of the engine")
    parser.add_argument("--engine-device", choices=("cpu", "cuda"), default="cpu", help="device of the engine")
    parser.add_argument("--engine-memory", type=float, default=0.85, help="fraction of GPU memory that the engine uses")
    return parser


def _installation(options: argparse.Namespace, settings: Settings) -> Installation:
    if options.port is not None and settings.secret is None:
        raise SettingsError("--port requires HATRACK_TRAINER_SECRET, since other processes can reach the port too")
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
        others=tuple(options.other_base),
    )


@contextmanager
def _lock_home(directory: Path) -> Iterator[None]:
    """Hold the lock of this home. Raises HomeLocked if another trainer holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    lock = os.open(directory / "trainer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HomeLocked(
            f"another trainer is already running in {directory}; stop it or choose another --home"
        ) from None
    else:
        yield
    finally:
        os.close(lock)


def _refuse_held(database: Database) -> None:
    """Raise HomeLocked if another trainer, of another home, keeps records in the same schema of a server."""
    try:
        database.backend.refuse_held()
    except DatabaseFault as error:
        raise HomeLocked(str(error)) from error


def _unix(path: Path) -> socket.socket:
    """Listen on a socket that only this user can open. Replaces a leftover one; call it under the home's lock."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    previous_umask = os.umask(0o177)  # not chmod afterwards: the socket must never be open to others
    try:
        listener.bind(str(path))
    except OSError as error:
        raise SettingsError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(previous_umask)
    mode = path.stat().st_mode & 0o777
    if mode != 0o600:
        raise SettingsError(
            f"{path} is open to other users (mode {mode:o}): its file system has no file modes; use another one"
        )
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
        raise SettingsError("the trainer could not start; see its log")


async def _stop_with_parent(parent: int, server: Server) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 (a parent's exit cannot be awaited)
        await asyncio.sleep(PARENT_POLL_S)
    _LOG.warning("the parent process has exited; stopping")
    server.stop()


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"trainer: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
