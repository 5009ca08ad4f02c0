"""What a version is compared with before it goes live, and what is not replaced because it could not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.trainer.finetune.conftest import KEY, FakeGateway
from tests.unit.trainer.finetune.test_judging import _no_signals, job, judged, said, trained
from tests.unit.trainer.finetune.test_worker import run
from trainer.errors import GatewayRefused
from trainer.evaluate.evaluations.promotion import LivePointer, live_to_compare, promote
from trainer.evaluate.evaluations.spec import VerdictRecord
from trainer.runs.gateway import Gateway
from trainer.runs.protocol import DONE

__all__ = ["_no_signals", "job", "trained"]

PASS = VerdictRecord(verdict="pass", sentence="Pass: better.", metric="rouge_l", examples=40)
SECOND = "/v1/adapters/voice/versions/2"


@pytest.fixture
def way(gateway: FakeGateway) -> Iterator[Gateway]:
    found = Gateway(gateway.url, KEY)
    yield found
    found.close()


def test_what_answers_from_a_store_that_the_job_may_not_read_is_neither_compared_with_nor_replaced(
    gateway: FakeGateway, way: Gateway
) -> None:
    gateway.aliases, gateway.grounded = {"live": 2}, {SECOND: {"vector_store_ids": ["vs_secret"]}}
    gateway.no_store = {"voice@2"}
    said: list[str] = []
    pointer, live = live_to_compare(way, "voice@3", said.append)
    assert (pointer, live) == (LivePointer(version=2, compared=False), None)
    assert said == [
        "there was no comparison with voice@2, which is live: the API key may not read a vector store that it uses"
    ]
    assert promote(way, "voice@3", PASS, "auto", pointer, lambda message, **_: said.append(message)) is False
    assert gateway.aliases == {"live": 2}
    assert said[-1] == (
        "not promoted: voice still answers with @2, and no comparison with it was possible. "
        "`hatrack promote voice@3` makes it live"
    )


def test_what_answers_from_a_store_that_the_job_may_read_is_compared_with(gateway: FakeGateway, way: Gateway) -> None:
    gateway.aliases, gateway.grounded = {"live": 2}, {SECOND: {"vector_store_ids": ["vs_shop"]}}
    said: list[str] = []
    assert live_to_compare(way, "voice@3", said.append) == (LivePointer(version=2), "voice@2")
    assert said == []


def test_a_version_without_grounding_is_asked_nothing_for_it(gateway: FakeGateway, way: Gateway) -> None:
    gateway.aliases = {"live": 2}
    assert live_to_compare(way, "voice@3", lambda _: None) == (LivePointer(version=2), "voice@2")
    assert gateway.engine.asked == []


def test_another_refusal_is_an_error(gateway: FakeGateway, way: Gateway) -> None:
    gateway.aliases, gateway.grounded = {"live": 2}, {SECOND: {"vector_store_ids": ["vs_shop"]}}
    gateway.engine.says["voice@2"] = None
    with pytest.raises(GatewayRefused):
        live_to_compare(way, "voice@3", lambda _: None)


def test_a_pass_does_not_move_live_to_what_is_held_back(gateway: FakeGateway, way: Gateway) -> None:
    gateway.aliases, gateway.held_back = {"live": 2}, {3}
    said: list[tuple[str, str]] = []
    moved = promote(
        way, "voice@3", PASS, "auto", LivePointer(version=2), lambda text, level="": said.append((text, level))
    )
    assert moved is False
    assert gateway.aliases == {"live": 2}
    assert said == [("it passed but is not live: version_held_back", "warn")]


# of a job


@pytest.mark.slow
def test_live_that_moved_to_what_was_not_compared_is_left_alone(job: Callable[..., Path], gateway: FakeGateway) -> None:
    def somebody_promotes() -> None:
        gateway.aliases["live"] = 2

    gateway.engine.on_answer = somebody_promotes
    folder = job()
    assert run(folder) == DONE
    assert (judged(folder).verdict, judged(folder).live) == ("pass", False)
    assert gateway.aliases == {"live": 2}
    assert "which it was not compared with" in said(folder)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["never", "split"])
def test_a_pass_moves_nothing_where_that_is_not_wanted(
    job: Callable[..., Path], gateway: FakeGateway, how: str
) -> None:
    if how == "split":
        gateway.splits, gateway.aliases = {"live": {"2": 90, "3": 10}}, {}
    folder = job(promote="never" if how == "never" else "auto")
    assert run(folder) == DONE
    assert (judged(folder).verdict, judged(folder).live) == ("pass", False)
    assert gateway.aliases == {}
    assert ("voice@2" in {model for model, _ in gateway.engine.asked}) is (how == "split")
    assert "not promoted" in said(folder)[-1]
    assert "`hatrack promote voice@1` makes it live" in said(folder)[-1]
