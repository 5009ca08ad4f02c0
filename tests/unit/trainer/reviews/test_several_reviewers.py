"""Several reviewers on each pair: each in an order of its own, none seeing the others, and how far they agree."""

from __future__ import annotations

import pytest

from tests.unit.trainer.evaluate.evaluations.trainer_app import Client, Running
from tests.unit.trainer.reviews.answered import (
    choose,
    choose_all,
    client,
    created,
    evaluated,
    following,
    gateway,
    listed,
    number_of,
    reviewer,
    trainer,
)

__all__ = ["client", "gateway", "trainer"]


async def test_several_reviewers_choose_on_each_pair_and_do_not_see_each_other(
    trainer: Running, client: Client
) -> None:
    evaluation = await evaluated(trainer, client, differing=12)
    queue = await created(client, evaluation, reviewers=2)
    assert queue["sentence"].startswith("0 of 12 pairs are reviewed by 2 reviewers each")
    ann, bob, cid = (reviewer(trainer, key) for key in ("key_ann", "key_bob", "key_cid"))
    assert await choose_all(ann, evaluation) == 12
    progress = await following(ann, evaluation)
    assert (progress["review"], progress["reviewed"], progress["total"]) == (None, 12, 12)
    assert ((await listed(client))["reviewed"], (await listed(client))["people"]) == (0, None)
    shown = await following(bob, evaluation)
    assert (shown["reviewed"], shown["review"]["choice"]) == (0, None)
    of_ann = (await ann.get(f"/v1/reviews/{shown['review']['id']}")).json()
    assert of_ann["choice"] is not None
    assert (await choose(ann, of_ann, "other")).status_code == 200, "one's own choice may change"
    assert await choose_all(bob, evaluation, {number_of(of_ann): "other"}) == 12
    queue = await listed(client)
    people = queue["people"]
    assert (queue["final"], people["candidate"], people["base"], people["tie"]) == (True, 22, 2, 0)
    assert (people["pairs"], people["reviewers"], people["agreed"]) == (12, 2, 1.0)
    assert people["kappa"] == pytest.approx(1.0)
    assert people["kappa_low"] < 1.0
    assert "Two reviewers of a pair chose the same 100 times of 100: Fleiss' κ = 1.00" in people["sentence"]
    assert (await following(cid, evaluation))["review"] is None


async def test_a_pair_that_has_all_its_choices_takes_no_other_keys(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=2)
    await created(client, evaluation, reviewers=2)
    ann, bob, cid = (reviewer(trainer, key) for key in ("key_ann", "key_bob", "key_cid"))
    pair = (await following(ann, evaluation))["review"]
    for http in (ann, bob):
        own = (await http.get(f"/v1/reviews/{pair['id']}")).json()
        assert (await choose(http, own, "mine")).status_code == 200
    refusal = await choose(cid, pair, "mine")
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "review_taken")
    assert (await following(cid, evaluation))["review"]["id"] != pair["id"]
    assert (await following(cid, evaluation))["reviewed"] == 1


async def test_each_of_several_reviewers_has_an_order_of_its_own(trainer: Running, client: Client) -> None:
    """Who always chooses the first answer agrees with nobody, and prefers neither side."""
    evaluation = await evaluated(trainer, client, differing=40)
    await created(client, evaluation, reviewers=2)
    orders = []
    for key in ("key_ann", "key_bob"):
        http, order = reviewer(trainer, key), {}
        while (review := (await following(http, evaluation))["review"]) is not None:
            assert (await http.get(f"/v1/reviews/{review['id']}")).json() == review, "it stays the same"
            order[review["id"]] = review["first"].startswith("mine")
            await http.post(f"/v1/reviews/{review['id']}", json={"choice": "first"})
        orders.append(order)
    same = sum(orders[0][pair] == orders[1][pair] for pair in orders[0])
    assert 8 <= same <= 32
    people = (await listed(client))["people"]
    assert people["agreed"] == pytest.approx(same / 40)
    assert people["candidate"] == sum(map(sum, (order.values() for order in orders)))


# ended


async def test_reviews_of_reviewers_who_never_come_can_be_ended(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=6)
    await created(client, evaluation, reviewers=2)
    ann, bob = (reviewer(trainer, key) for key in ("key_ann", "key_bob"))
    assert await choose_all(ann, evaluation) == 6
    pair = (await following(bob, evaluation))["review"]
    await choose(bob, pair, "other")
    ended = (await client.http.post(f"/v1/reviews/{evaluation}/end")).json()
    assert ended == await listed(client)
    assert (ended["final"], ended["reviewed"], ended["pairs"]) == (True, 1, 6)
    assert ended["ended_at"] >= ended["created_at"]
    people = ended["people"]
    assert (people["pairs"], people["candidate"], people["base"]) == (6, 6, 1)
    assert people["agreed"] == 0.0, "of the one pair that both have chosen on"
    assert "The review was ended early: 1 of its 6 pairs had all choices." in people["sentence"]
    left = await following(bob, evaluation)
    assert (left["review"], left["reviewed"], left["total"]) == (None, 1, 6)
    late = await choose(bob, pair, "mine")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "review_final")
    assert "was ended" in late.json()["error"]["message"]
    assert (await ann.get(f"/v1/reviews/{pair['id']}")).json()["first_is"] in ("candidate", "base"), "no longer blind"
    assert (await client.http.post(f"/v1/reviews/{evaluation}/end")).json() == ended, "once is enough"


async def test_reviews_that_nobody_began_have_no_outcome(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=2)
    await created(client, evaluation, reviewers=2)
    ended = (await client.http.post(f"/v1/reviews/{evaluation}/end")).json()
    assert (ended["final"], ended["people"]) == (True, None)
    assert ended["sentence"] == "The review was ended before anybody had chosen."


async def test_ending_what_is_complete_changes_nothing(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=2)
    await created(client, evaluation)
    await choose_all(client.http, evaluation)
    ended = (await client.http.post(f"/v1/reviews/{evaluation}/end")).json()
    assert (ended["final"], ended["ended_at"]) == (True, None)
    assert "ended early" not in ended["people"]["sentence"]


async def test_only_who_sees_the_reviews_ends_them(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=2)
    await created(client, evaluation)
    other = reviewer(trainer, "key_other", **{"x-hatrack-project": "other"})
    answer = await other.post(f"/v1/reviews/{evaluation}/end")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "reviews_not_found")
    assert (await listed(client))["final"] is False
