"""The operator's webhook: what it is told, that nothing is lost, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
from openai import OpenAI

from tests.support.http import QuietHandler
from tests.unit.trainer.finetune.conftest import FakeGateway, gateway
from tests.unit.trainer.finetune.trainers import PATIENCE_S, running
from tests.unit.trainer.worker_processes import end_workers
from trainer.config import load_settings, worker_environment
from trainer.database import Database
from trainer.errors import SettingsError
from trainer.runs import supervisor
from trainer.webhook import outbox, sender
from trainer.webhook.outbox import Outcome
from trainer.webhook.sender import Address, WebhookSender

__all__ = ["end_workers", "gateway"]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
JOB_FIELDS = {"id", "project", "status", "finished_at", "error", "adapter", "version", "verdict", "live"}


@dataclass
class Receiver:
    """The operator's server: answers with ``statuses`` in turn, the last of them for good."""

    url: str
    statuses: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def payloads(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@contextmanager
def receiver() -> Iterator[Receiver]:
    found = Receiver("")

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            found.hold.wait(PATIENCE_S)
            self.send_response(found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0])
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    found.hold.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def operator() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK_S", 0.05)
    monkeypatch.setattr(supervisor, "TURN_S", 0.1)
    monkeypatch.setattr(sender, "BACK_OFF_S", (0.01, 0.01, 0.01))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(tmp_path / "jobs.db")
    await found.open()
    yield found
    await found.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.02)


# end to end, with a trainer and real workers


async def test_a_jobs_end_is_told_signed_and_with_names_and_outcomes_alone(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, operator: Receiver
) -> None:
    settings = {"webhook_url": operator.url, "webhook_secret": SECRET}
    async with running(tmp_path, base_dir, gateway, **settings) as trainer:
        client = trainer.client()
        made = await client.create(metadata={"judging": "pass", "note": "a caller's own words"})
        await client.ended(made.id)
        held = await client.create(metadata={"hold": "1"})
        await client.openai.fine_tuning.jobs.cancel(held.id)
        await until(lambda: len(operator.got) == 2, "both events")
        deadline = time.monotonic() + PATIENCE_S
        # the receiver has it a moment before the sender has noted so
        while (health := (await client.http.get("/health")).json())["webhook"]["waiting"]:
            assert time.monotonic() < deadline, "the delivery was not noted"
            await asyncio.sleep(0.02)
    headers, body = operator.got[0]
    standardwebhooks.Webhook(SECRET).verify(body, headers)
    event: Any = OpenAI(api_key="unused").webhooks.unwrap(body, headers, secret=SECRET)
    assert (event.type, event.id, event.data.id) == ("fine_tuning.job.succeeded", headers["webhook-id"], made.id)
    succeeded, cancelled = operator.payloads()
    assert succeeded["version"] == 1
    assert set(succeeded["data"]) == JOB_FIELDS
    told = {name: succeeded["data"][name] for name in ("project", "adapter", "version", "verdict", "live", "error")}
    assert told == {
        "project": "default", "adapter": "voice", "version": "voice@1", "verdict": "pass", "live": True, "error": None,
    }  # fmt: skip
    assert (cancelled["type"], cancelled["data"]["id"]) == ("fine_tuning.job.cancelled", held.id)
    assert b"own words" not in body
    assert health["webhook"] == {"delivered": 2, "failed": 0, "waiting": 0}


async def test_what_a_stopped_trainer_could_not_tell_is_told_by_the_next(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "BACK_OFF_S", (0.2,) * 1000)
    nobody = {"webhook_url": "http://127.0.0.1:9/hook", "webhook_secret": SECRET}
    async with running(tmp_path, base_dir, gateway, **nobody) as trainer:
        made = await trainer.client().create()
        assert (await trainer.client().ended(made.id)).status == "succeeded"
    with receiver() as operator:
        settings = {"webhook_url": operator.url, "webhook_secret": SECRET}
        async with running(tmp_path, base_dir, gateway, **settings):
            await until(lambda: bool(operator.got), "the event of the first trainer's job")
    assert [payload["data"]["id"] for payload in operator.payloads()] == [made.id]


async def test_no_run_waits_for_a_receiver_that_does_not_answer(
    tmp_path: Path, base_dir: Path, gateway: FakeGateway, operator: Receiver
) -> None:
    operator.hold.clear()
    settings = {"webhook_url": operator.url, "webhook_secret": SECRET}
    async with running(tmp_path, base_dir, gateway, **settings) as trainer:
        client = trainer.client()
        first, second = await client.create(), await client.create()
        for made in (first, second):
            assert (await client.ended(made.id)).status == "succeeded"


# the sender and its outbox


def answers(*statuses: int | type[Exception]) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        status = statuses[min(len(asked), len(statuses) - 1)]
        asked.append(request)
        if not isinstance(status, int):
            raise status("as the test wants it")
        return httpx.Response(status, headers={"location": "http://127.0.0.1/elsewhere"})

    return httpx.MockTransport(answer), asked


async def sent(database: Database, *statuses: int | type[Exception]) -> tuple[list[httpx.Request], dict[str, int]]:
    """The requests for one event until it is settled, and the counts then."""
    transport, asked = answers(*statuses)
    await database.run(lambda db: outbox.add(db, "evaluation.succeeded", {"id": "eval-1"}))
    sending = WebhookSender(database, Address("http://operator/hook", b"k" * 24), transport=transport)
    await sending.start()
    deadline = time.monotonic() + PATIENCE_S
    while (counts := await database.run(outbox.counts))["waiting"]:
        assert time.monotonic() < deadline, "the event is never settled"
        await asyncio.sleep(0.02)
    await sending.stop()
    return asked, counts


async def test_a_failed_attempt_is_repeated_under_the_same_id_and_newly_signed(database: Database) -> None:
    asked, counts = await sent(database, 500, httpx.ConnectError, 302, 200)
    assert counts == {"delivered": 1, "failed": 0, "waiting": 0}
    assert len(asked) == 4, "a redirect is a failure, and is not followed"
    assert len({request.headers["webhook-id"] for request in asked}) == 1
    assert len({request.content for request in asked}) == 1
    assert {str(request.url) for request in asked} == {"http://operator/hook"}


@pytest.mark.parametrize(("statuses", "tries"), [((503,), 4), ((410,), 1)])
async def test_an_event_is_given_up_after_bounded_attempts(
    database: Database, statuses: tuple[int, ...], tries: int
) -> None:
    asked, counts = await sent(database, *statuses)
    assert len(asked) == tries
    assert counts == {"delivered": 0, "failed": 1, "waiting": 0}


async def test_the_outbox_is_bounded_and_counts_what_it_gives_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 2)
    made = [await database.run(partial(outbox.add, event_type="t", data={"id": number})) for number in range(4)]
    left = await database.run(lambda db: outbox.due(db, now=time.time(), limit=9))
    assert [event.id for event in left] == made[2:]
    assert await database.run(outbox.counts) == {"delivered": 0, "failed": 2, "waiting": 2}


async def test_an_event_that_is_settled_twice_counts_once(database: Database) -> None:
    await database.run(lambda db: outbox.add(db, "t", {}))
    (event,) = await database.run(lambda db: outbox.due(db, now=time.time(), limit=9))
    for _ in range(2):
        await database.run(lambda db: outbox.settle(db, event, Outcome.DELIVERED))
    assert (await database.run(outbox.counts))["delivered"] == 1


async def test_without_an_address_nothing_waits(database: Database) -> None:
    await database.run(lambda db: outbox.add(db, "t", {}))
    sending = WebhookSender(database, None)
    await sending.start()
    await sending.stop()
    assert not sending.wanted
    assert (await database.run(outbox.counts))["waiting"] == 0


# settings


@pytest.mark.parametrize(
    ("url", "secret", "named"),
    [
        ("https://ops.example.com/h", None, "requires HATRACK_TRAINER_WEBHOOK_SECRET"),
        ("https://ops.example.com/h", "whsec_this is no base64", "not valid base64"),
        ("https://ops.example.com/h", "short", "at least 16"),
        ("https://user:pass@ops.example.com/h", SECRET, "HATRACK_TRAINER_WEBHOOK_URL"),
        ("file:///etc/passwd", SECRET, "HATRACK_TRAINER_WEBHOOK_URL"),
    ],
)
def test_wrong_settings_are_named_and_secrets_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str, secret: str | None, named: str
) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_WEBHOOK_URL", url)
    if secret is not None:
        monkeypatch.setenv("HATRACK_TRAINER_WEBHOOK_SECRET", secret)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert named in str(refused.value)
    assert secret is None or secret not in str(refused.value)
    assert url not in str(refused.value), "it may hold a token"


def test_a_worker_gets_neither_url_nor_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATRACK_TRAINER_WEBHOOK_URL", "https://ops.example.com/h")
    monkeypatch.setenv("HATRACK_TRAINER_WEBHOOK_SECRET", SECRET)
    assert load_settings().webhook() == ("https://ops.example.com/h", load_settings().webhook()[1])  # type: ignore[index]
    assert not {name for name in worker_environment() if "WEBHOOK" in name}
