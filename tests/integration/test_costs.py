"""What requests cost, on the real engine: a version's share of its time, and shares that add up to all of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import PRICE_DEVICE_HOUR
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

REQUESTS = 3
PRECISION_S = 0.05
"""Seconds that the rows may differ from the whole, which is read at another moment."""


def costs(gateway: Gateway, *by: str) -> dict[str, Any]:
    with gateway.http() as client:
        answer = client.get("/v1/costs", params={"group_by": ",".join(by), "limit": 1000})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def of_version(gateway: Gateway, adapter: str, version: int) -> tuple[int, float, float]:
    """The requests of a version, the seconds of the engine that were theirs, and the money."""
    rows = costs(gateway, "adapter", "version")["data"]
    own = [row for row in rows if (row["adapter"], row["version"]) == (adapter, version)]
    seconds, money = (sum(row[part]["serving"] for row in own) for part in ("seconds", "money"))
    return sum(row["requests"] for row in own), seconds, money


def test_requests_cost_their_version_engine_time_and_the_shares_add_up(gateway: Gateway) -> None:
    requests_before, seconds_before, _ = of_version(gateway, "tidewater", 1)
    gateway.answers([("tidewater", f"Do you sell rope of size {size}?") for size in range(REQUESTS)], max_tokens=8)
    requests, seconds, money = of_version(gateway, "tidewater", 1)
    assert requests - requests_before == REQUESTS
    assert seconds > seconds_before
    assert money == pytest.approx(seconds / 3600 * PRICE_DEVICE_HOUR, rel=0.01)

    def whole_and_shares() -> tuple[float, float]:
        page = costs(gateway, "adapter", "version")
        assert not page["has_more"]
        shares = sum(row["seconds"]["serving"] + row["seconds"]["evaluating"] for row in page["data"])
        return page["engine"]["busy_seconds"], shares + page["engine"]["own_seconds"]

    # the whole is read every few seconds
    wait_until(
        lambda: whole_and_shares()[0] == pytest.approx(whole_and_shares()[1], abs=PRECISION_S),
        lambda: (
            f"the engine was busy for {whole_and_shares()[0]} s, and the shares add up to {whole_and_shares()[1]} s"
        ),
        timeout_s=60,
    )
