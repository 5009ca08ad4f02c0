"""Faults as inputs: kill -9, adapters damaged in the store, a thousand adapters, restarts."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from safetensors.numpy import load_file, save_file

from adapters.base import BaseDescription
from tests.support.adapters import describe_base, make_adapter
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

MANY = 1000
STREAMS = 50
STREAM_TOKENS = 800
"""All 50 to their ends fit into the KV cache of 1 GiB, so none is preempted; none ends before all have begun."""
RELOADED_WITHIN_S = 180.0
PATIENCE_S = 180.0
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseDescription:
    return describe_base(base_dir, cache_dir=tmp_path_factory.mktemp("base-cache"))


@pytest.fixture(scope="module")
def gateway(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose engine may be killed."""
    started = Gateway(
        home=tmp_path_factory.mktemp("faults"),
        base_dir=base_dir,
        settings={"HATRACK_ENGINE_CANARY_S": "2", "HATRACK_ENGINE_SLOTS": "2", "HATRACK_ENGINE_RESIDENT": "2"},
    )
    started.start()
    yield started
    if started.process is not None and started.process.poll() is None:
        started.stop()
    assert started.engine_processes() == []


def wait_until_loaded(gateway: Gateway, digest: str) -> None:
    wait_until(
        lambda: digest in gateway.loaded(),
        f"{digest[:12]} was not loaded again within {RELOADED_WITHIN_S:g} s",
        timeout_s=RELOADED_WITHIN_S,
    )


def test_a_pinned_adapter_is_loaded_again_after_others_evicted_it(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    digests = {}
    for seed, name in enumerate(("pinned", "second", "third"), start=40):
        pushed = gateway.push(name, make_adapter(tmp_path / name, base, rank=4, seed=seed).directory)
        assert pushed.status_code == 201, pushed.text
        digests[name] = pushed.json()["digest"]
    assert gateway.loaded() == {digests["second"], digests["third"]}, "the first has fallen out"
    with gateway.http() as http:
        assert http.put("/v1/adapters/pinned/pin").json()["pinned"] is True
        refused = http.put("/v1/adapters/second/pin")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_pins")
    wait_until_loaded(gateway, digests["pinned"])

    for name in ("second", "third"):
        assert gateway.chat(name, "hello", max_tokens=1).status_code == 200
    wait_until_loaded(gateway, digests["pinned"])

    with gateway.http() as http:
        for name in digests:
            assert http.delete(f"/v1/adapters/{name}?force=true").status_code == 204


def scale_stored_adapter(gateway: Gateway, digest: str, factor: float) -> None:
    """Multiply every lora_B of a stored adapter; the file keeps its size, and the engine reads it at its next load."""
    path = gateway.home / "adapters" / digest / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if "lora_B" in name:
            tensors[name] = (value.astype("float32") * factor).astype(value.dtype)
    path.chmod(0o600)
    path.parent.chmod(0o700)
    size = path.stat().st_size
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == size, "the damage must not show in the size"


@pytest.mark.parametrize(("kind", "factor"), [("nan", float("nan")), ("overflow", 1e30)])
def test_an_adapter_damaged_in_the_store_answers_errors_and_affects_no_other_model(
    gateway: Gateway, base: BaseDescription, tmp_path: Path, kind: str, factor: float
) -> None:
    healthy = make_adapter(tmp_path / "healthy", base, rank=4, seed=100).directory
    bad = make_adapter(tmp_path / "bad", base, rank=4, seed=101 if kind == "nan" else 102, modules=EVERY).directory
    first = gateway.push("healthy", healthy)
    assert first.status_code in (200, 201), first.text
    pushed = gateway.push(f"bad-{kind}", bad)
    assert pushed.status_code == 201, pushed.text
    base_name = gateway.base_name()
    question = "What is the capital of France?"
    before = {model: gateway.answer(model, question, max_tokens=12) for model in (base_name, "healthy")}
    scale_stored_adapter(gateway, pushed.json()["digest"], factor)
    for filler in range(3):  # two slots, two resident adapters: the sound copy falls out of the engine's memory
        filler_adapter = make_adapter(tmp_path / f"filler{filler}", base, rank=4, seed=200 + filler).directory
        assert gateway.push(f"filler{filler}", filler_adapter).status_code in (200, 201)
        gateway.answer(f"filler{filler}", "hello", max_tokens=2)
    models = [base_name, "healthy", f"bad-{kind}"] * 6
    with ThreadPoolExecutor(len(models)) as pool:
        responses = list(pool.map(lambda model: gateway.chat(model, question, max_tokens=12), models))
    for model, response in zip(models, responses, strict=True):
        if model.startswith("bad"):
            assert response.status_code in (409, 500), (response.status_code, response.text)
            assert response.json()["error"]["code"] in ("adapter_not_finite", "version_corrupt"), response.text
        else:
            assert response.status_code == 200, response.text
            text = response.json()["choices"][0]["message"]["content"]
            assert text.strip(), f"an empty answer from {model}"
    assert any(r.json()["error"]["code"] == "adapter_not_finite" for r in responses if r.status_code == 500)
    deadline = time.monotonic() + PATIENCE_S
    while (late := gateway.chat(f"bad-{kind}", question)).status_code != 409:
        assert late.status_code == 500, late.text
        assert time.monotonic() < deadline, "the version never became unservable"
        time.sleep(0.3)
    assert late.json()["error"]["code"] == "version_corrupt"
    for model, text in before.items():
        # asked again where it differs: a canary may have shared a step with it, which sums in another order
        assert any(gateway.answer(model, question, max_tokens=12) == text for _ in range(3)), model


def test_kill_9_of_the_engine_under_load_loses_only_requests_in_flight_and_reloads_pins(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    pinned = gateway.push("pinned", make_adapter(tmp_path / "pinned", base, rank=4, seed=43).directory)
    assert pinned.status_code == 201, pinned.text
    base_name, question = gateway.base_name(), "What is the capital of France?"
    before = gateway.answer_samples(base_name, question, max_tokens=12)
    with gateway.http() as http:
        assert http.put("/v1/adapters/pinned/pin").json()["pinned"] is True
    old = {process.pid for process in gateway.engine_processes()}
    assert old
    with ThreadPoolExecutor(4) as pool:
        flying = [
            pool.submit(gateway.chat, base_name, "Tell me a long story.", max_tokens=1200, ignore_eos=True)
            for _ in range(4)
        ]
        deadline = time.monotonic() + PATIENCE_S
        while (at_work := gateway.running_requests()) < len(flying):
            early = [job.result().text for job in flying if job.done()]
            assert not early, f"answered before all of them were at work: {early}"
            assert time.monotonic() < deadline, f"the engine works on {at_work:g} of them:\n{gateway.log()}"
            time.sleep(0.1)
        gateway.engine_server().kill()
        results = [job.result() for job in flying]
    assert all(response.status_code in (502, 503) for response in results), [r.text for r in results]
    started = time.monotonic()
    at_once = gateway.chat(base_name, "hello")
    if at_once.status_code == 503:
        # at once: neither when there is an engine again, which takes half a minute, nor by the queue's 120 s
        assert time.monotonic() - started < 10
        assert int(at_once.headers["retry-after"]) > 0
    # until the gateway has seen it, /readyz speaks of the engine that was
    with gateway.http() as http:
        wait_until(lambda: http.get("/readyz").status_code != 200, "the loss was not seen", timeout_s=PATIENCE_S)
    gateway.wait_ready()
    assert gateway.still_answers(before, base_name, question, max_tokens=12)
    left = [process.pid for process in gateway.engine_processes() if process.pid in old]
    assert left == [], "processes of the old engine live on"
    wait_until_loaded(gateway, pinned.json()["digest"])
    with gateway.http() as http:
        assert http.delete("/v1/adapters/pinned?force=true").status_code == 204


@dataclass
class WordStream:
    """A streamed answer that says one word and nothing else: all other tokens are out of the sampler's reach."""

    token: int
    word: str
    began: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    ending: str = ""
    """`[DONE]`, or the error's code."""

    def request(self, model: str, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Say {self.word}."}]
        bias = {"logit_bias": {str(self.token): 100}, "ignore_eos": True, "temperature": 0}
        return {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens, **bias}

    def read(self, gateway: Gateway, model: str, max_tokens: int) -> None:
        """Read the answer to its end. Raises httpx.TransportError if it has none."""
        self.text = self.ending = ""
        with (
            gateway.http() as http,
            http.stream("POST", "/v1/chat/completions", json=self.request(model, max_tokens)) as answer,
        ):
            if answer.status_code != 200:
                self.ending = f"status {answer.status_code}: {answer.read().decode()}"
                return
            for line in answer.iter_lines():
                if not line:
                    continue
                assert line.startswith("data: "), line
                assert not self.ending, f"{line} after {self.ending}"
                if line == "data: [DONE]":
                    self.ending = "[DONE]"
                    continue
                event = orjson.loads(line.removeprefix("data: "))
                if "error" in event:
                    self.ending = event["error"]["code"]
                    continue
                for choice in event["choices"]:
                    self.text += choice["delta"].get("content") or ""
                    if self.text.strip():
                        self.began.set()

    def said_only_its_word(self) -> bool:
        return bool(self.text.strip()) and not self.text.replace(self.word, "").strip()


def word_streams(gateway: Gateway, model: str) -> list[WordStream]:
    """Streams of different words, each a token of its own, of which none is a part of another."""
    streams: list[WordStream] = []
    with gateway.http() as http:
        for token in range(1000, 4000):
            answer = http.post("/v1/detokenize", json={"model": model, "tokens": [token]}).raise_for_status()
            word = answer.json()["prompt"].strip()
            known = [stream.word for stream in streams]
            is_apart = not any(word in other or other in word for other in known)
            if len(word) > 3 and word.isascii() and word.isalpha() and is_apart:
                streams.append(WordStream(token, word))
            if len(streams) == STREAMS:
                return streams
    raise AssertionError(f"the tokenizer has only {len(streams)} such words")


def test_kill_9_of_the_engine_under_50_streams_ends_each_in_a_named_error_and_mixes_none(gateway: Gateway) -> None:
    base_name = gateway.base_name()
    streams = word_streams(gateway, base_name)
    with ThreadPoolExecutor(STREAMS) as pool:
        reading = [pool.submit(stream.read, gateway, base_name, STREAM_TOKENS) for stream in streams]
        wait_until(
            lambda: all(stream.began.is_set() for stream in streams) or any(job.done() for job in reading),
            lambda: f"{sum(stream.began.is_set() for stream in streams)} of {STREAMS} began:\n{gateway.log()}",
            timeout_s=PATIENCE_S * 2,
        )
        early = [(stream.word, stream.ending) for stream, job in zip(streams, reading, strict=True) if job.done()]
        gateway.engine_server().kill()
        for job in reading:
            job.result(timeout=PATIENCE_S)  # raises what the reader met: a stream without an end is a transport error
    assert early == [], "they ended before the engine was killed"
    endings = {stream.word: stream.ending for stream in streams}
    assert set(endings.values()) <= {"[DONE]", "engine_cut", "engine_error"}, endings
    assert "engine_cut" in endings.values(), "none of them was open when the engine was killed"
    mixed = [(stream.word, stream.text) for stream in streams if not stream.said_only_its_word()]
    assert mixed == []
    with gateway.http() as http:
        wait_until(lambda: http.get("/readyz").status_code != 200, "the loss was not seen", timeout_s=PATIENCE_S)
    gateway.wait_ready()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda stream: stream.read(gateway, base_name, 4), streams))
    assert {stream.ending for stream in streams} == {"[DONE]"}, [(stream.word, stream.ending) for stream in streams]
    assert all(stream.said_only_its_word() for stream in streams)


def test_a_thousand_adapters_survive_restarts_of_engine_and_gateway(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    source = make_adapter(tmp_path / "one", base, rank=1, seed=900).directory
    assert gateway.push("one", source).status_code == 201
    database = gateway.home / "hatrack.db"
    gateway.kill()
    copy_adapter_many_times(database, gateway.home / "adapters", MANY)
    gateway.start()
    with gateway.http() as http:
        names = []
        after: dict[str, str] = {}
        while True:
            page = http.get("/v1/adapters", params={"limit": "100", **after}).json()
            names += [adapter["name"] for adapter in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["data"][-1]["name"]}
    assert len([name for name in names if name.startswith("many-")]) == MANY
    for number in (0, 1, 499, 998, 999):
        assert gateway.answer(f"many-{number}", "hello", max_tokens=2) is not None


def copy_adapter_many_times(database: Path, store: Path, count: int) -> None:
    """Copy one ready adapter under many names, in the database and (by hard link) in the store."""
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        adapter = dict(connection.execute("SELECT * FROM adapters WHERE name = 'one'").fetchone())
        version = dict(connection.execute("SELECT * FROM versions WHERE adapter_id = ?", (adapter["id"],)).fetchone())
        aliases = [dict(r) for r in connection.execute("SELECT * FROM aliases WHERE adapter_id = ?", (adapter["id"],))]
        top_adapter = connection.execute("SELECT max(id) FROM adapters").fetchone()[0]
        top_version = connection.execute("SELECT max(id) FROM versions").fetchone()[0]
        for number in range(count):
            insert(connection, "adapters", adapter | {"id": top_adapter + 1 + number, "name": f"many-{number}"})
            copy = {"id": top_version + 1 + number, "adapter_id": top_adapter + 1 + number}
            insert(connection, "versions", version | copy)
            for alias in aliases:
                insert(
                    connection,
                    "aliases",
                    {k: v for k, v in alias.items() if k != "id"} | {"adapter_id": copy["adapter_id"]},
                )
    assert (store / version["digest"]).is_dir()


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    marks = ", ".join("?" for _ in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))  # noqa: S608


def test_kill_9_of_the_gateway_at_any_moment_of_an_upload_leaves_a_valid_registry(
    gateway: Gateway, base: BaseDescription, tmp_path: Path
) -> None:
    moments = (0.02, 0.1, 0.4, 1.0)
    staging = gateway.home / "adapters" / ".staging"
    for index, moment in enumerate(moments):
        adapter = make_adapter(tmp_path / f"torn{index}", base, rank=16, seed=300 + index).directory
        with ThreadPoolExecutor(1) as pool:
            push = pool.submit(gateway.push, f"torn-{index}", adapter)
            time.sleep(moment)
            gateway.kill()
            with suppress(httpx.TransportError):
                push.result()
        gateway.start()
        with gateway.http() as http:
            adapter_after = http.get(f"/v1/adapters/torn-{index}")
        if adapter_after.status_code == 404:
            assert gateway.push(f"torn-{index}", adapter).status_code == 201
        else:
            wait_until_serving(gateway, f"torn-{index}")
        assert gateway.answer(f"torn-{index}", "hello", max_tokens=2) is not None
        wait_until(lambda: not list(staging.iterdir()), "what was torn is left", timeout_s=PATIENCE_S)


def wait_until_serving(gateway: Gateway, name: str) -> None:
    with gateway.http() as http:
        wait_until(
            lambda: gateway.chat(name, "hello", max_tokens=2).status_code == 200,
            lambda: http.get(f"/v1/adapters/{name}").text,
            timeout_s=PATIENCE_S,
        )


def test_no_engine_process_is_left_after_a_stop(gateway: Gateway) -> None:
    gateway.stop()
    assert gateway.engine_processes() == []
    shutil.rmtree(gateway.home / "adapters")
