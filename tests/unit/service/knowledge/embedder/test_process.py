"""The embedder's process: private, started when needed, started again, ended with the gateway; and what it asks."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
from aiohttp import web

from service.errors import Unavailable
from service.knowledge import embeddings
from service.knowledge.embedder.document_reader import DocumentReader
from service.knowledge.embedder.model import InputRefused, ModelBusy, ModelError, directory_of, word_tokens
from service.knowledge.embedder.remote import RemoteModel
from service.knowledge.embedder.server import EmbedderServer
from service.knowledge.embeddings import Embedder, EmbedderConfig, EmbedderGone
from service.knowledge.types import Chunking
from tests.unit.service.knowledge.knowledge_app import vectors


def deadline(seconds: float = 240) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_nothing_runs_before_somebody_asks_and_nobody_else_may_ask(tmp_path: Path) -> None:
    async with vectors() as url:
        embedder = Embedder(EmbedderConfig(tmp_path / "e", model="words", url=url))
        assert embedder.pid is None
        await embedder.question("boots", deadline())
        assert stat.S_IMODE(embedder.config.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "e").stat().st_mode) == 0o700
        pid = embedder.pid
        assert pid is not None
        await embedder.close()
        assert embedder.pid is None
        assert not psutil.pid_exists(pid)


async def test_one_that_is_killed_comes_back(tmp_path: Path) -> None:
    async with vectors() as url:
        embedder = Embedder(EmbedderConfig(tmp_path / "e", model="words", url=url))
        first = await embedder.question("boots", deadline())
        assert embedder.pid is not None
        os.kill(embedder.pid, 9)
        async with asyncio.timeout(240):
            while True:
                try:
                    again = await embedder.question("boots", deadline())
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        assert np.array_equal(first, again)
        assert embedder.starts == 2
        await embedder.close()


def test_it_ends_when_the_gateway_does(tmp_path: Path) -> None:
    argv = EmbedderConfig(tmp_path, model="words", url="http://127.0.0.1:9").argv()
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    assert child.wait(240) == 0


async def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a directory"):
        directory_of(str(tmp_path / "absent"))
    embedder = Embedder(EmbedderConfig(tmp_path / "e", model=str(tmp_path / "absent")))
    with pytest.raises(Unavailable, match="exit code 3"):
        await embedder.question("boots", deadline())
    assert "is not a directory" in embedder.config.log.read_text()
    await embedder.close()


async def test_an_endpoint_that_is_away_blames_no_document(tmp_path: Path) -> None:
    embedder = Embedder(EmbedderConfig(tmp_path / "e", model="words", url="http://127.0.0.1:9"))
    with pytest.raises(Unavailable, match="cannot be reached"):
        await embedder.question("boots", deadline())
    (tmp_path / "a.txt").write_text("boots")
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        await anext(embedder.passages(tmp_path / "a.txt", "a.txt", Chunking(100, 0)))
    assert not isinstance(caught.value, EmbedderGone)
    await embedder.close()


@pytest.mark.parametrize(
    ("status", "passes"), [(429, True), (503, True), (504, True), (500, True), (400, False), (401, False), (404, False)]
)
async def test_what_passes_is_told_from_what_does_not(status: int, passes: bool) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, status=status)

    runner, url = await serve(answer)
    model = RemoteModel(url, "m", None)
    with pytest.raises(ModelError, match=str(status)) as caught:
        await model.embed(["a"], query=False)
    assert isinstance(caught.value, ModelBusy) is passes
    await model.close()
    await runner.cleanup()


async def test_a_deadline_passes_while_it_starts(tmp_path: Path) -> None:
    embedder = Embedder(EmbedderConfig(tmp_path / "e"))
    with pytest.raises(TimeoutError):
        await embedder.question("boots", deadline(0.05))
    await embedder.close()


@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/embeddings", "/v1/"])
async def test_an_endpoint_is_asked_as_openais_with_the_key(suffix: str) -> None:
    asked: list[tuple[str | None, object]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append((request.headers.get("authorization"), body["model"]))
        rows = [{"index": n, "embedding": [3.0, 4.0 * (n + 1)]} for n in range(len(body["input"]))]
        return web.json_response({"data": rows[::-1]})

    runner, url = await serve(answer)
    model = RemoteModel(url + suffix, "m", "secret")
    found = await model.embed(["a"] * 70, query=False)
    assert found.shape == (70, 2)
    assert found[0] == pytest.approx([0.6, 0.8])
    assert asked == [("Bearer secret", "m")] * 2
    await model.close()
    await runner.cleanup()


async def test_a_callers_texts_are_counted_by_the_endpoint_and_its_refusals_are_told() -> None:
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append({name: value for name, value in body.items() if name != "input"})
        if "long" in body["input"]:
            error = {"message": "at most 8192 tokens", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        if "odd" in body["input"]:
            return web.json_response("no", status=422)
        rows = [{"index": n, "embedding": [3.0, 4.0]} for n in range(len(body["input"]))]
        usage = {} if "uncounted" in body["input"] else {"usage": {"prompt_tokens": 5000 * len(rows)}}
        return web.json_response({"data": rows, **usage})

    runner, url = await serve(answer)
    model = RemoteModel(url, "m", None)
    found, tokens = await model.embed_inputs(["a", "b"], 2)
    assert found == pytest.approx(np.array([[0.6, 0.8]] * 2))
    assert (tokens, asked) == (10_000, [{"model": "m", "encoding_format": "float", "dimensions": 2}])
    assert (await model.embed_inputs(["uncounted", "as words."], None))[1] == 4
    for text, code, reason in (
        ("long", "context_length_exceeded", "at most 8192 tokens"),
        ("odd", "invalid_value", "its endpoint returned status 422"),
    ):
        with pytest.raises(InputRefused, match=reason) as refused:
            await model.embed_inputs([text], None)
        assert (refused.value.code, refused.value.field) == (code, "input")
        with pytest.raises(ModelError, match="returned status 4"):
            await model.embed([text], query=True)
    asked.clear()
    with pytest.raises(
        InputRefused, match="has 320000 tokens in its first 64 of 200 texts; a request may have at most"
    ):
        await model.embed_inputs(["a"] * 200, None)
    assert len(asked) == 1, "the rest was not sent"
    await model.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    "body",
    [{}, {"data": []}, {"data": [{"index": 0}]}, {"data": [{"index": 0, "embedding": ["x"]}]}, {"data": 7}, []],
)
async def test_an_endpoint_that_answers_nonsense_is_an_error(body: object) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body)

    runner, url = await serve(answer)
    model = RemoteModel(url, "m", None)
    with pytest.raises(ModelError):
        await model.embed(["a"], query=True)
    await model.close()
    await runner.cleanup()


async def test_no_key_is_on_the_command_line() -> None:
    config = EmbedderConfig(Path("e"), model="m", url="http://x/v1", key="secret")
    assert "secret" not in " ".join(config.argv())
    assert config.argv()[:3] == [sys.executable, "-m", "service.knowledge.embedder"]


def test_no_secret_is_in_its_environment() -> None:
    secret = ("HATRACK_ADMIN_KEY", "HATRACK_GROUNDING_SECRET", "HATRACK_EMBEDDINGS_KEY", "OPENAI_API_KEY", "HF_TOKEN")
    inherited = dict.fromkeys(secret, "x") | {"PATH": "/bin", "KEYBOARD": "us", "HOME": "/root"}
    left = embeddings._environment(inherited, 2)
    assert left.keys() & inherited.keys() == {"PATH", "KEYBOARD", "HOME"}
    assert left["OMP_NUM_THREADS"] == "2"


class Child:
    """A process that ends when it is killed, or is asked so often whether it has."""

    def __init__(self, polls: int) -> None:
        self.polls = polls
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.polls -= 1
        if self.returncode is None and self.polls < 0:
            self.returncode = 0
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([True, True, True, True], "ended with exit code 0"),
        ([True, False, True, False], "ended with exit code 0"),
        ([True, False, False, False], "answered nothing for"),
        ([False, False, False, False], "answered nothing for"),
    ],
)
async def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, answers: list[bool], reason: str) -> None:
    clock, given = [0.0], iter(answers)
    monkeypatch.setattr(embeddings, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(embeddings, "TICK_S", 0.0)
    monkeypatch.setattr(embeddings, "START_LIMIT_S", embeddings.HUNG_S)
    embedder = Embedder(EmbedderConfig(Path("e")))

    async def later() -> bool:
        clock[0] += 0.6 * embeddings.HUNG_S
        return next(given)

    monkeypatch.setattr(embedder, "_answers", later)
    child = Child(len(answers))
    assert reason in await embedder._live(cast("subprocess.Popen[bytes]", child))
    assert (child.returncode == -9) is reason.startswith("answered")


async def test_a_question_that_nobody_waits_for_is_not_embedded() -> None:
    asked: list[str] = []

    class Model:
        tokens = staticmethod(word_tokens)

        async def embed(self, texts: Sequence[str], *, query: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
            asked.extend(texts)
            return np.zeros((len(texts), 2), dtype=np.float32)

        async def embed_inputs(self, texts: Sequence[str], dimensions: int | None) -> Any:
            raise AssertionError("nobody has asked for embeddings")

        async def close(self) -> None:
            pass

    server = EmbedderServer(Model(), DocumentReader())
    left, waits = (asyncio.get_running_loop().create_future() for _ in range(2))
    server._waiting = [("left", left), ("waits", waits)]
    left.cancel()
    await server._answer()
    assert asked == ["waits"]
    assert waits.done()
    assert not server._waiting


async def serve(answer: object) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_post("/v1/embeddings", answer)  # type: ignore[arg-type]
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"
