from __future__ import annotations

import pytest

from trainer.finetune.traffic import TrafficMonitor


class Cancelled(Exception):
    pass


def test_a_pause_that_is_ended_by_an_order_counts() -> None:
    def check() -> None:
        raise Cancelled

    with TrafficMonitor(lambda: (1, 0), above=0, max_s=60.0, check=check) as serving:
        with pytest.raises(Cancelled):
            serving.yield_to_traffic()
        assert serving.paused_s > 0
        assert serving.pauses == 1
