"""Waiting for a state: until a condition holds, or until a call is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

INTERVAL_S: Final = 0.05
ATTEMPTS: Final = 10


def wait_until(condition: Callable[[], object], failure: str | Callable[[], str], *, timeout_s: float = 300.0) -> None:
    """Return once `condition` gives something true. Fails with `failure` where it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, failure if isinstance(failure, str) else failure()
        time.sleep(INTERVAL_S)


def call_until_refused(call: Callable[[], Any]) -> None:
    """Call until it raises, at most `ATTEMPTS` times: a limit per minute refills meanwhile, so a slow engine lets a
    request or two more in."""
    for _ in range(ATTEMPTS):
        call()
