"""Files through the official client on a real gateway, and what the gateway answers while no trainer runs."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.support.gateway import TIMEOUT, Gateway

LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
MIB = 1024 * 1024
NOBODYS = "file-" + "0" * 24
PATIENCE_S = 300.0


def client_of(gateway: Gateway, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def key_in(gateway: Gateway, project: str, *scopes: str) -> str:
    return str(gateway.create_key(name="files", project=project, scopes=list(scopes))["key"])


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return key_in(gateway, "filing", "train", "infer", "adapters")


@pytest.fixture(scope="module")
def client(gateway: Gateway, key: str) -> Iterator[openai.OpenAI]:
    with client_of(gateway, key) as ready:
        yield ready


def test_the_official_client_uploads_reads_lists_and_deletes(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "voices.jsonl"
    path.write_bytes(LINE * 20)
    with path.open("rb") as content:
        made = client.files.create(file=content, purpose="fine-tune")
    assert (made.object, made.bytes, made.filename, made.purpose) == (
        "file",
        20 * len(LINE),
        "voices.jsonl",
        "fine-tune",
    )
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == LINE * 20
    more = [client.files.create(file=(f"{n}.txt", b"x" * (n + 1)), purpose="user_data").id for n in range(5)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [made.id, *more]
    assert [file.id for file in client.files.list(purpose="user_data")] == more[::-1]
    for file_id in (made.id, *more):
        assert client.files.delete(file_id).deleted
    assert list(client.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_files_expiry_is_kept(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=b"gone in an hour", purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    client.files.delete(made.id)


def test_a_broken_training_file_is_refused_with_the_line_number(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("data.jsonl", LINE * 3 + b"{broken\n" + LINE), purpose="fine-tune")
    assert refused.value.code == "invalid_training_file"
    assert "line 4: not JSON" in str(refused.value)
    assert list(client.files.list()) == []


def test_another_projects_file_answers_like_one_that_does_not_exist(gateway: Gateway, client: openai.OpenAI) -> None:
    made = client.files.create(file=LINE, purpose="fine-tune")
    stranger_key = key_in(gateway, "strangers", "train", "infer", "adapters")
    with httpx.Client(
        base_url=gateway.url, timeout=TIMEOUT, headers={"authorization": f"Bearer {stranger_key}"}
    ) as stranger:
        assert stranger.get("/v1/files").json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            hidden, nonexistent = (
                stranger.request(method, f"/v1/files/{file_id}{path}") for file_id in (made.id, NOBODYS)
            )
            assert hidden.status_code == nonexistent.status_code == 404
            assert hidden.text.replace(made.id, NOBODYS) == nonexistent.text
        base = stranger.get("/v1/models").json()["data"][0]["id"]
        jobs = [
            stranger.post("/v1/fine_tuning/jobs", json={"model": base, "training_file": file_id})
            for file_id in (made.id, NOBODYS)
        ]
        assert [job.status_code for job in jobs] == [404, 404]
        assert jobs[0].text.replace(made.id, NOBODYS) == jobs[1].text
    assert client.files.delete(made.id).deleted


def test_a_file_over_the_size_limit_is_refused_before_it_is_sent(gateway: Gateway, key: str) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {600 * MIB}\r\n\r\n--b\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as wire:
        wire.sendall(head.encode())
        assert b"413" in wire.recv(64).split(b"\r\n")[0]


def trainer_process(gateway: Gateway) -> psutil.Process:
    """The trainer that the gateway has started."""
    assert gateway.process is not None
    for child in psutil.Process(gateway.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # one that is just ending
            if child.cmdline()[1:3] == ["-m", "trainer"]:
                return child
    raise AssertionError("the gateway has no trainer")


@contextmanager
def without_trainer(gateway: Gateway) -> Iterator[psutil.Process]:
    """Kill the trainer, and keep another from being started meanwhile: the gateway starts none while somebody holds the
    lock."""
    killed = trainer_process(gateway)
    deadline = time.monotonic() + PATIENCE_S
    with (gateway.home / "trainer" / "supervised.lock").open("rb+") as lock:
        killed.kill()
        killed.wait(PATIENCE_S)
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            assert time.monotonic() < deadline, "the trainer's lock has outlived it"
            with suppress(AssertionError, psutil.Error):  # the next one was quicker
                trainer_process(gateway).kill()
            time.sleep(0.05)
        yield killed


def background_keys(gateway: Gateway) -> set[str]:
    with gateway.http() as admin:
        return {key["id"] for key in admin.get("/v1/keys?limit=100").json()["data"] if key["background"]}


def wait_until_training_answers(client: openai.OpenAI) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.fine_tuning.jobs.list()
            return
        except openai.APIStatusError:
            assert time.monotonic() < deadline, "the trainer has not come back"
        time.sleep(0.5)


def test_without_a_trainer_training_is_503_while_answers_continue_until_it_is_back(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    made = client.files.create(file=LINE * 10, purpose="fine-tune")
    base = client.models.list().data[0].id
    wait_until_training_answers(client)
    before = background_keys(gateway)  # of what else is at work
    with without_trainer(gateway) as killed:
        with pytest.raises(openai.APIStatusError) as down:
            client.fine_tuning.jobs.create(model=base, training_file=made.id, suffix="my voice")
        assert (down.value.status_code, down.value.code) == (503, "trainer_unavailable")
        assert int(down.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.APIStatusError, match="trainer"):
            client.fine_tuning.jobs.list()
        assert background_keys(gateway) <= before
        with gateway.http() as admin:
            assert set(admin.get("/v1/load").json()) == {"object", "waiting", "in_flight"}
        assert gateway.answer(base, "Say hello.")
    client.files.delete(made.id)
    wait_until_training_answers(client)
    assert trainer_process(gateway).pid != killed.pid
