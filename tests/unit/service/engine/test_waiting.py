"""A reader of vLLM's shared memory that sleeps looks for its message itself: the one that wakes it may be lost."""

from __future__ import annotations

import time
from typing import Any

import pytest
import zmq

from service.engine.plugin import waiting

vllm = pytest.importorskip("vllm.distributed.device_communicators.shm_broadcast")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that has just read, and that nobody wakes."""
    for name in ("record_read", "wait"):
        monkeypatch.setattr(vllm.SpinCondition, name, getattr(vllm.SpinCondition, name))
    waiting.install()
    made = object.__new__(vllm.SpinCondition)  # its sockets need another process
    made.is_reader, made.poller = True, zmq.Poller()
    made.read_cancel_socket = made.local_notify_socket = object()
    made.record_read()
    return made


class Looks:
    """In the place of a poller: how long it would have slept, ms."""

    def __init__(self) -> None:
        self.slept: list[int | None] = []

    def poll(self, timeout: int | None) -> list[object]:
        self.slept.append(timeout)
        return []


def test_it_sleeps_no_longer_than_a_step(reader: Any) -> None:
    time.sleep(2 * waiting.SPIN_S)
    reader.poller = looks = Looks()
    reader.wait()
    reader.wait(timeout_ms=5_000)
    reader.wait(timeout_ms=3)
    reader.last_read -= waiting.IDLE_S
    reader.wait(timeout_ms=5_000)
    assert looks.slept == [waiting.LOOK_MS, waiting.LOOK_MS, 3, waiting.IDLE_LOOK_MS]


def test_without_any_message_it_looks_again(reader: Any) -> None:
    time.sleep(2 * waiting.SPIN_S)
    reader.wait()  # returns although nobody has sent anything


def test_just_after_a_message_it_does_not_sleep(reader: Any) -> None:
    reader.poller = looks = Looks()
    reader.busy_loop_s = 60.0
    reader.wait()
    assert looks.slept == []
