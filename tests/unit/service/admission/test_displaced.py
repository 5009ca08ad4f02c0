"""Who has to make room where the queue is full."""

from __future__ import annotations

from collections import Counter

import pytest

from service.admission.queued import Stage
from service.errors import Unavailable
from tests.unit.service.admission.world import ClockedScheduler, request

pytestmark = pytest.mark.usefixtures("scheduler_class")


def test_floods_fill_no_queue_for_others() -> None:
    clocked = ClockedScheduler(width=1, common=1, queue_size=40, queue_share=0.6)
    clocked.offer()
    floods = [clocked.offer(project=project, key=key) for key in "abcd" for project in "pq" for _ in range(5)]
    assert clocked.scheduler.queued == 40
    late = [clocked.offer(project="p", key="late"), *(clocked.offer(project="r") for _ in range(13))]
    displaced = clocked.scheduler.displaced
    assert all(entry.stage is Stage.WAITING for entry in late)
    assert {entry.request.key_id for entry in displaced} == set("abcd"), "the longest queues have lost of theirs"
    assert Counter(entry.request.project for entry in displaced) == {"p": 8, "q": 6}
    of_one = [entry for entry in floods if entry.leaf is displaced[0].leaf]
    assert displaced[0] is of_one[-1], "the newest"
    assert of_one[0].stage is Stage.WAITING
    with pytest.raises(Unavailable):
        clocked.offer(project="r")
    with pytest.raises(Unavailable):
        clocked.offer(project="q", background=True)


@pytest.mark.parametrize("floods", ["pq", "qp"])
def test_a_quiet_key_gets_in_beside_the_flood_of_its_own_project_whichever_is_longer(floods: str) -> None:
    clocked = ClockedScheduler(width=1, common=1, queue_size=40, queue_share=0.6)
    clocked.offer()
    for project in floods:
        for _ in range(20):
            clocked.offer(project=project, key="flood")
    assert clocked.offer(project="p", key="late").stage is Stage.WAITING
    assert [entry.request.project for entry in clocked.scheduler.displaced] == ["p"]


def test_a_refused_request_displaces_none() -> None:
    clocked = ClockedScheduler(width=1, common=1, queue_size=8, queue_share=0.5)
    clocked.offer()
    for _ in range(4):
        clocked.offer(project="p"), clocked.offer(project="q")
    clocked.scheduler.pace.stay_s = 1000.0
    with pytest.raises(Unavailable, match="might wait"):
        clocked.scheduler.offer(request(project="r"), clocked.now, 1.0)
    assert not clocked.scheduler.displaced
    assert clocked.scheduler.queued == 8
