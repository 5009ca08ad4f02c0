"""Who has to make room where the queue is full."""

from __future__ import annotations

from collections import Counter

import pytest

from service.admission.queued import Stage
from service.errors import Unavailable
from tests.unit.service.admission.world import Desk, request

pytestmark = pytest.mark.usefixtures("scheduler_class")


def test_floods_fill_no_queue_for_others() -> None:
    desk = Desk(width=1, common=1, queue_size=40, queue_share=0.6)
    desk.offer()
    floods = [desk.offer(project=project, key=key) for key in "abcd" for project in "pq" for _ in range(5)]
    assert desk.scheduler.queued == 40
    late = [desk.offer(project="p", key="late"), *(desk.offer(project="r") for _ in range(13))]
    displaced = desk.scheduler.displaced
    assert all(entry.stage is Stage.WAITING for entry in late)
    assert {entry.request.key_id for entry in displaced} == set("abcd"), "the longest queues have lost of theirs"
    assert Counter(entry.request.project for entry in displaced) == {"p": 8, "q": 6}
    of_one = [entry for entry in floods if entry.leaf is displaced[0].leaf]
    assert displaced[0] is of_one[-1], "the newest"
    assert of_one[0].stage is Stage.WAITING
    with pytest.raises(Unavailable):
        desk.offer(project="r")
    with pytest.raises(Unavailable):
        desk.offer(project="q", background=True)


@pytest.mark.parametrize("floods", ["pq", "qp"])
def test_a_quiet_key_gets_in_beside_the_flood_of_its_own_project_whichever_is_longer(floods: str) -> None:
    desk = Desk(width=1, common=1, queue_size=40, queue_share=0.6)
    desk.offer()
    for project in floods:
        for _ in range(20):
            desk.offer(project=project, key="flood")
    assert desk.offer(project="p", key="late").stage is Stage.WAITING
    assert [entry.request.project for entry in desk.scheduler.displaced] == ["p"]


def test_a_refused_request_displaces_none() -> None:
    desk = Desk(width=1, common=1, queue_size=8, queue_share=0.5)
    desk.offer()
    for _ in range(4):
        desk.offer(project="p"), desk.offer(project="q")
    desk.scheduler.pace.stay_s = 1000.0
    with pytest.raises(Unavailable, match="might wait"):
        desk.scheduler.offer(request(project="r"), desk.now, 1.0)
    assert not desk.scheduler.displaced
    assert desk.scheduler.queued == 8
