"""The way to the embedder: a process of its own, started when it is needed, watched, and ended with the gateway."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final

import aiohttp
import orjson

from service.config import DEFAULT_EMBEDDER, Settings, inherited_environment
from service.errors import BadGateway, BadRequest, TooLarge, Unavailable
from service.http.connection_errors import ConnectionErrors
from service.http.pool import ConnectionPool
from service.knowledge.segment import Segment, Vectors
from service.knowledge.text import PassageText
from service.knowledge.types import Chunking
from service.knowledge.wire import MAX_INPUT_BYTES, TOKENS_HEADER, batch_of, unpack, vectors_of

BACK_OFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_S: Final = 60.0
"""An embedder that has run this long starts the back-off anew."""
TICK_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 5.0
KEEP_ALIVE_S: Final = 15.0
START_TIMEOUT_S: Final = 120.0
"""Until a new embedder must answer, s: it loads torch and a model."""
INPUTS_START_TIMEOUT_S: Final = 30.0
"""How long a request to ``/v1/embeddings`` waits for that, s."""
SILENCE_TIMEOUT_S: Final = 300.0
"""Between two pieces of an answer to ``/index``, s: reading a document is part of that."""
STOP_TIMEOUT_S: Final = 5.0
LIVENESS_INTERVAL_S: Final = 5.0
"""Between two looks whether a ready embedder still answers, s."""
HUNG_S: Final = 60.0
"""A ready embedder that has answered nothing for so long is ended, and another one started, s."""
START_LIMIT_S: Final = 600.0
"""The same for one that is not ready yet, s."""
NOT_INHERITED: Final = re.compile(r"HATRACK_.*|(?:.*_)?(?:KEY|SECRET|TOKEN|PASSWORD|CREDENTIALS)", re.IGNORECASE)
"""Variables that an embedder does not inherit, nor the process in which it has documents read: all that may be secrets.

What it needs of the settings is on its command line and, the endpoint's key, on its standard input.
"""
MAX_LOG_BYTES: Final = 4 * 1024 * 1024
_URL: Final = "http://embedder"
_LOG: Final = logging.getLogger("hatrack.grounding")


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """How an embedder is started.

    Attributes:
        directory: Of its socket and its log.
        model: A directory, or the endpoint's name of a model; empty: the packaged one.
        url: An OpenAI-compatible endpoint; empty: a model of our own.
        key: For the endpoint.
        threads: That a model of our own uses for a batch.
    """

    directory: Path
    model: str = ""
    url: str = ""
    key: str = ""
    threads: int = 1

    @classmethod
    def from_settings(cls, settings: Settings) -> EmbedderConfig:
        """Take the embedder's part of the settings."""
        key = settings.embeddings_key.get_secret_value() if settings.embeddings_key else ""
        return cls(
            settings.home / "grounding",
            settings.embeddings_model,
            settings.embeddings_url,
            key,
            settings.embeddings_threads,
        )

    @property
    def identity(self) -> str:
        """Identifies what makes the vectors; vectors of different identities cannot be compared."""
        return f"{self.url} {self.model}" if self.url else self.model or DEFAULT_EMBEDDER

    @property
    def socket(self) -> Path:
        return self.directory / "embedder.sock"

    @property
    def log(self) -> Path:
        return self.directory / "embedder.log"

    def argv(self) -> list[str]:
        """The command line; the key is not in it, but sent on standard input."""
        argv = [sys.executable, "-m", "service.knowledge.embedder"]
        argv += ["--socket", str(self.socket), "--threads", str(self.threads)]
        argv += ["--model", self.model] if self.model else []
        return argv + (["--url", self.url] if self.url else [])


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of a document's ``total`` passages."""

    segment: Segment
    passages: list[PassageText]
    total: int


class DocumentRefused(Exception):
    """The embedder cannot turn a document into passages; ``code`` is one of OpenAI's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class EmbedderGone(Unavailable):
    """The embedder ended or hung while it processed a document, which may be the cause.

    Attributes:
        final_code: OpenAI's code of a document over which this happened again and again.
    """

    final_code: ClassVar = "server_error"


class ReaderGone(EmbedderGone):
    """The embedder's process that reads documents ended over one."""

    final_code: ClassVar = "invalid_file"


_ERRORS: Final = ConnectionErrors(
    # it went away before it heard of this document
    unreachable=lambda _: Unavailable("the embedder is restarting", code="embedder_unavailable"),
    cut=lambda _: EmbedderGone("the embedder ended before its response was complete", code="embedder_unavailable"),
)


class Embedder:
    """An embedder process, started on first use and restarted when it ends or hangs.

    Args:
        config: How it is started.
    """

    def __init__(self, config: EmbedderConfig) -> None:
        self.config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._pool = ConnectionPool(
            str(config.socket), connect_s=CONNECT_TIMEOUT_S, keep_alive_s=KEEP_ALIVE_S, read_bufsize=1 << 20
        )
        self._ready = asyncio.Event()
        self._trouble = ""
        self.starts = 0
        """How often it was started."""

    @property
    def pid(self) -> int | None:
        """The running embedder's process id; None if there is none."""
        return None if self._child is None or self._child.poll() is not None else self._child.pid

    @property
    def identity(self) -> str:
        """See ``EmbedderConfig.identity``."""
        return self.config.identity

    def start(self) -> None:
        """Start an embedder and keep it running. Returns at once; a second call does nothing."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="embedder")

    async def close(self) -> None:
        """Stop the embedder; returns when it is gone."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self._pool.close()
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(_end, child)

    async def question(self, text: str, deadline: float) -> Vectors:
        """The vector of a question, (dimensions), of length 1.

        Args:
            deadline: On the event loop's clock, seconds.

        Raises:
            TimeoutError: The deadline passed; an embedder that is being started takes some seconds.
            Unavailable: It cannot be started, or the endpoint gave nothing.
            BadGateway: It answered something that is no vector.
        """
        async with asyncio.timeout_at(deadline):
            await self._until_ready()
            with _ERRORS:
                async with self._pool.session.post(f"{_URL}/embed", data=orjson.dumps({"text": text})) as response:
                    if response.status != 200:
                        raise Unavailable(await _reason(response), code="embedder_unavailable")
                    header, blobs = await unpack(response.content.readexactly)
        vectors = vectors_of(header, blobs)
        if vectors.shape[0] != 1:
            raise BadGateway("the embedder returned no vector", code="embedder_error")
        question: Vectors = vectors[0]
        return question

    async def inputs(self, texts: list[str], **options: Any) -> tuple[bytes, int]:
        """Answer a request to ``/v1/embeddings``: the JSON for the caller, and the number of tokens.

        Args:
            options: ``single``, ``model``, ``base64`` and ``dimensions`` of ``service.knowledge.wire``.

        Raises:
            BadRequest: A text is longer than the model's window, there are too many tokens, or the model has no
                vectors of these ``dimensions``.
            TooLarge: The texts have too many bytes.
            Unavailable: The embedder is starting, cannot be started, or its endpoint gives nothing now.
            EmbedderGone: It ended over this request.
            BadGateway: Its endpoint gives no vectors.
        """
        body = orjson.dumps({"input": texts, **options})
        if len(body) > MAX_INPUT_BYTES:
            raise TooLarge(
                f"`input` has {len(body)} bytes; the embedder takes at most {MAX_INPUT_BYTES}", param="input"
            )
        try:
            async with asyncio.timeout(INPUTS_START_TIMEOUT_S):
                await self._until_ready()
        except TimeoutError:
            raise Unavailable("the embedder is starting; try again soon", code="embedder_unavailable") from None
        with _ERRORS:
            # as a file: megabytes are sent in pieces, between which the event loop does other things
            async with self._pool.session.post(f"{_URL}/embeddings", data=BytesIO(body)) as response:
                if response.status == 200:
                    return await response.read(), int(response.headers[TOKENS_HEADER])
                if response.status == 400:
                    refusal = orjson.loads(await response.read())
                    raise BadRequest(refusal["error"], param=refusal["param"], code=refusal["code"])
                reason = await _reason(response)
        if response.status == 503:
            raise Unavailable(reason, code="embedder_unavailable")
        raise BadGateway(reason, code="embedder_error")

    async def passages(self, path: Path, filename: str, chunking: Chunking) -> AsyncIterator[Batch]:
        """A document's passages, in batches, as they are embedded.

        Raises:
            DocumentRefused: It cannot be read or embedded.
            EmbedderGone: The embedder, or its reader of documents, went away over this document.
            Unavailable: It cannot be started, or its endpoint gives nothing now; no document is to blame.
            BadGateway: It sent an invalid frame.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._until_ready()
        except TimeoutError as error:
            raise Unavailable(f"the embedder was not ready after {START_TIMEOUT_S:g} s") from error
        body = {"path": str(path), "filename": filename, "size": chunking.size, "overlap": chunking.overlap}
        with _ERRORS:
            async with self._pool.session.post(f"{_URL}/index", data=orjson.dumps(body)) as response:
                while True:
                    try:
                        async with asyncio.timeout(SILENCE_TIMEOUT_S):
                            header, blobs = await unpack(response.content.readexactly)
                    except TimeoutError as error:
                        raise EmbedderGone(f"the embedder sent nothing for {SILENCE_TIMEOUT_S:g} s") from error
                    if not blobs:
                        _check_end(orjson.loads(header))
                        return
                    yield Batch(*await asyncio.to_thread(batch_of, header, blobs))

    async def _until_ready(self) -> None:
        self.start()
        while not self._ready.is_set():
            if self._trouble:
                raise Unavailable(self._trouble, code="embedder_unavailable")
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._ready.wait()

    async def _watch(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                # on this thread: a start that outlived its cancellation would leave an embedder that nobody knows of
                self._child = _spawn(self.config)
                self.starts += 1
                reason = await self._live(self._child)
                _close_input(self._child)
            except OSError as error:
                reason = f"the embedder cannot be started: {error}"
            self._ready.clear()
            failures = 1 if time.monotonic() - began > STABLE_S else failures + 1
            self._trouble = reason if failures > 1 else ""
            pause_s = BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1]
            _LOG.error("restarting the embedder", extra={"reason": reason, "in_s": pause_s})
            await asyncio.sleep(pause_s)

    async def _live(self, child: subprocess.Popen[bytes]) -> str:
        """One embedder, from its start to its end: why it ended. One that hangs is killed."""
        heard = time.monotonic()
        checked_at, silent_s = 0.0, 0.0
        while child.poll() is None:
            if not self._ready.is_set() or time.monotonic() - checked_at >= LIVENESS_INTERVAL_S:
                checked_at = time.monotonic()
                if await self._answers():
                    heard = time.monotonic()
                    self._trouble = ""
                    self._ready.set()
                elif time.monotonic() - heard > (HUNG_S if self._ready.is_set() else START_LIMIT_S):
                    silent_s = time.monotonic() - heard
                    child.kill()
            await asyncio.sleep(TICK_S)
        if silent_s:
            return f"the embedder answered nothing for {silent_s:.0f} s"
        return f"the embedder ended with exit code {child.returncode}; see {self.config.log.name}"

    async def _answers(self) -> bool:
        try:
            with _ERRORS:
                async with asyncio.timeout(CONNECT_TIMEOUT_S), self._pool.session.get(f"{_URL}/") as response:
                    return response.status == 200
        except (Unavailable, TimeoutError):
            return False


def _spawn(config: EmbedderConfig) -> subprocess.Popen[bytes]:
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o700)
    config.socket.unlink(missing_ok=True)
    if config.log.exists() and config.log.stat().st_size > MAX_LOG_BYTES:
        config.log.replace(config.log.with_suffix(".log.1"))
    with config.log.open("ab") as log:
        child = subprocess.Popen(
            config.argv(),
            env=_environment(inherited_environment(), config.threads),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends the embedder
        )
    if child.stdin is not None:
        with suppress(BrokenPipeError):  # it has ended already; that is seen by whoever watches
            child.stdin.write(f"{config.key}\n".encode())
            child.stdin.flush()
    return child


def _environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    environment = {name: value for name, value in inherited.items() if not NOT_INHERITED.fullmatch(name)}
    # a library that asks for no threads of its own gets none: one batch must not take the engine's cores
    return environment | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _close_input(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    _close_input(child)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait(STOP_TIMEOUT_S)


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        return str(orjson.loads(await response.read())["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"the embedder answered {response.status}"


def _check_end(last_frame: dict[str, Any]) -> None:
    if last_frame.get("busy"):
        raise Unavailable(last_frame["busy"], code="embedder_unavailable")
    if last_frame.get("reader"):
        raise ReaderGone(last_frame["reader"], code="embedder_unavailable")
    if last_frame.get("error"):
        raise DocumentRefused(*last_frame["error"])
    if not last_frame.get("end"):
        raise BadGateway("the embedder sent an invalid frame", code="embedder_error")
