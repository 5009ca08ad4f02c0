"""`POST /v1/reviews`: pairs drawn from a finished run's answers, without a judge; what people prefer on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adapters.authorization import Ownership
from tests.unit.trainer.evaluate.evaluations.trainer_app import Client, Running
from tests.unit.trainer.reviews.answered import (
    BASE,
    CANDIDATE,
    answer,
    choose,
    choose_all,
    client,
    created,
    evaluated,
    following,
    gateway,
    leave_answers,
    listed,
    number_of,
    reviewer,
    trainer,
)
from trainer.evaluate.arms import ChatMessage
from trainer.evaluate.endpoints import read_endpoints
from trainer.evaluate.evaluations.spec import ANSWERS
from trainer.evaluate.pairs import REVIEWS, ReviewPair
from trainer.reviews.errors import NothingToReview
from trainer.reviews.stored_answers import draw_from
from trainer.runs import records as run_records
from trainer.runs.records import NewRun
from trainer.runs.state import Status

__all__ = ["client", "gateway", "trainer"]


async def refused(client: Client, evaluation: str, **more: Any) -> tuple[int, str, str]:
    found = await client.http.post("/v1/reviews", json={"evaluation": evaluation, **more})
    error = found.json()["error"]
    assert error["param"] == "evaluation"
    return found.status_code, error["code"], error["message"]


async def test_pairs_are_drawn_from_the_first_run_of_candidate_and_strongest_base(
    trainer: Running, client: Client
) -> None:
    evaluation = await evaluated(trainer, client, differing=6, alike=2)
    queue = await created(client, evaluation)
    assert (queue["object"], queue["id"], queue["pairs"], queue["reviewed"]) == ("review.queue", evaluation, 6, 0)
    assert (queue["judge"], queue["agreement"], queue["standing"]) == (None, None, None)
    assert (queue["counted"], queue["more_reviews"], queue["people"], queue["reviewers"]) == (False, None, None, 1)
    assert queue["sentence"] == "0 of 6 pairs are reviewed; what people prefer is shown once all are."
    seen = []
    while (review := (await following(client.http, evaluation))["review"]) is not None:
        number = number_of(review)
        assert sorted([review["first"], review["second"]]) == [f"mine {number}", f"other {number}"]
        assert review["reference"] == f"Reference {number}."
        assert "voice" not in str(review)
        assert not {"first_is", "judge_vote", "vote"} & set(review)
        seen.append(number)
        await choose(client.http, review, "tie")
    assert sorted(seen) == list(range(6)), "questions with the same answer twice are not shown"


def test_the_same_run_gives_the_same_pairs_and_either_side_comes_first(tmp_path: Path) -> None:
    leave_answers(tmp_path, differing=60)
    drawn = draw_from(tmp_path, "eval-1", 20)
    assert draw_from(tmp_path, "eval-1", 20) == drawn
    assert (len(drawn.pairs), drawn.differing, drawn.alike) == (20, 60, 0)
    assert len({pair.example for pair in drawn.pairs}) == 20
    sides = Counter(pair.first_is for pair in draw_from(tmp_path, "eval-1", 60).pairs)
    assert min(sides["candidate"], sides["base"]) >= 15
    other = draw_from(tmp_path, "eval-2", 20)
    assert [pair.example for pair in other.pairs] != [pair.example for pair in drawn.pairs]


def test_answers_are_read_as_the_metric_reads_them(tmp_path: Path) -> None:
    """Behind a label's form, both arms say the same: there is nothing to compare."""
    leave_answers(tmp_path, differing=1, alike=1, metric="exact_match")
    lines = [
        answer(CANDIDATE, 0, "The answer is cat."),
        answer(BASE, 0, "cat."),
        *(answer(arm, 1, "Alike.") for arm in (CANDIDATE, BASE)),
    ]
    (tmp_path / ANSWERS).write_text("".join(lines) + "half a li")
    with pytest.raises(NothingToReview, match="gave the same answer to each of the 2 questions"):
        draw_from(tmp_path, "eval-1", 5)


async def test_an_evaluation_has_pairs_once(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client)
    await created(client, evaluation, pairs=2)
    status, code, message = await refused(client, evaluation)
    assert (status, code) == (409, "reviews_exist")
    assert f"`hatrack review {evaluation}`" in message
    assert (await listed(client))["pairs"] == 2


async def test_what_cannot_be_reviewed_says_why(trainer: Running, client: Client) -> None:
    held = await client.made(metadata={"hold": "1"})
    assert (await refused(client, held))[:2] == (409, "not_finished")
    await client.http.post(f"/v1/evaluations/{held}/cancel")
    await client.ended(held)
    status, code, message = await refused(client, held)
    assert (status, code) == (409, "nothing_to_review")
    assert "no evaluation report" in message
    without_verdict = await client.made()
    await client.ended(without_verdict)
    status, code, message = await refused(client, without_verdict)
    assert (status, code) == (409, "nothing_to_review")
    assert "has no verdict" in message
    cleared = await evaluated(trainer, client)
    trainer.directories.clear(cleared)
    status, code, message = await refused(client, cleared)
    assert (status, code) == (409, "nothing_to_review")
    assert "HATRACK_TRAINER_KEEP_DAYS" in message
    assert (await refused(client, "eval-none"))[:2] == (404, "not_found")
    assert (await client.http.get("/v1/reviews")).json()["data"] == []


async def test_answers_that_are_missing_one_are_not_reviewed(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client)
    answers = trainer.directories.path_of(evaluation) / ANSWERS
    answers.write_bytes(answers.read_bytes().partition(b"\n")[2])
    assert (await refused(client, evaluation))[:2] == (409, "nothing_to_review")


async def test_another_project_and_a_key_without_the_adapter_find_no_evaluation(
    trainer: Running, client: Client
) -> None:
    evaluation = await evaluated(trainer, client)
    assert (await refused(trainer.client("acme"), evaluation))[:2] == (404, "not_found")
    elsewhere = trainer.client()
    elsewhere.http.headers.update({"x-hatrack-adapters": "shop-*", "x-hatrack-key-id": "key_shop"})
    assert (await refused(elsewhere, evaluation))[:2] == (404, "not_found")
    await created(client, evaluation)
    for stranger in (trainer.client("acme"), elsewhere):
        assert (await stranger.http.get("/v1/reviews")).json()["data"] == []
        found = await stranger.http.get("/v1/reviews/next", params={"evaluation": evaluation})
        assert (found.status_code, found.json()["error"]["code"]) == (404, "reviews_not_found")
    allowed = reviewer(trainer, "key_a", **{"x-hatrack-adapters": "voi*"})
    assert (await following(allowed, evaluation))["total"] == 6


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "evaluation", "invalid_value"),
        ({"evaluation": ""}, "evaluation", "invalid_value"),
        ({"evaluation": "eval-1", "pairs": 0}, "pairs", "invalid_value"),
        ({"evaluation": "eval-1", "pairs": 1001}, "pairs", "invalid_value"),
        ({"evaluation": "eval-1", "pairs": "many"}, "pairs", "invalid_value"),
        ({"evaluation": "eval-1", "reviewers": 6}, "reviewers", "invalid_value"),
        ({"evaluation": "eval-1", "judge": "strict"}, "judge", "unknown_parameter"),
    ],
)
async def test_a_wrong_field_is_named(client: Client, body: dict[str, Any], param: str, code: str) -> None:
    found = await client.http.post("/v1/reviews", json=body)
    assert found.status_code == 400
    assert (found.json()["error"]["param"], found.json()["error"]["code"]) == (param, code)


async def test_what_people_prefer_is_shown_once_all_pairs_are_reviewed(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=10, alike=2)
    await created(client, evaluation)
    page, report = f"/v1/evaluations/{evaluation}/report.html", f"/v1/evaluations/{evaluation}/report"
    before = (await client.http.get(page)).text
    better = {0: "other", 1: "other", 2: "tie"}
    first = (await following(client.http, evaluation))["review"]
    await choose(client.http, first, better.get(number_of(first), "mine"))
    assert (await listed(client))["people"] is None
    assert "people" not in (await client.http.get(report)).json()
    assert (await client.http.get(page)).text == before
    assert await choose_all(client.http, evaluation, better) == 9
    queue = await listed(client)
    people = queue["people"]
    assert (queue["final"], queue["reviewed"], people["pairs"]) == (True, 10, 10)
    assert (people["candidate"], people["tie"], people["base"], people["mean"]) == (7, 1, 2, pytest.approx(0.75))
    assert 0 <= people["low"] < people["mean"] < people["high"] <= 1
    assert (people["differing"], people["alike"], people["agreed"], people["kappa"]) == (10, 2, None, None)
    assert queue["sentence"] == people["sentence"]
    assert "On 10 pairs of different answers" in people["sentence"]
    assert "people chose voice@3 7 times, base 2 times, and neither 1 time" in people["sentence"]
    assert "On 2 of all 12 questions both gave the same answer" in people["sentence"]
    assert people["sentence"].endswith("It decides nothing in the verdict.")
    shown = (await client.http.get(report)).json()
    assert shown["people"] == people
    assert shown["verdict"] == {"candidate": "voice@3"}, "nothing else changes"
    opened = (await client.http.get(f"/v1/reviews/{first['id']}")).json()
    sides = {"mine": "candidate", "other": "base", "tie": "tie"}
    assert (opened["judge_vote"], opened["vote"]) == (None, sides[better.get(number_of(first), "mine")])
    shown_page = (await client.http.get(page)).text
    assert "What people prefer" in shown_page
    assert "voice@3 is better" in shown_page
    changed = "mine" if opened["vote"] == "tie" else "tie"
    refusal = await choose(client.http, first, changed)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "review_final")


async def test_with_one_reviewer_any_key_of_the_project_may_change_a_choice(trainer: Running, client: Client) -> None:
    evaluation = await evaluated(trainer, client, differing=2)
    await created(client, evaluation)
    ann, bob = reviewer(trainer, "key_ann"), reviewer(trainer, "key_bob")
    pair = (await following(ann, evaluation))["review"]
    await choose(ann, pair, "mine")
    assert (await following(bob, evaluation))["review"]["id"] != pair["id"]
    changed = await choose(bob, pair, "tie")
    assert (changed.status_code, changed.json()["choice"]) == (200, "tie")
    assert (await ann.get(f"/v1/reviews/{pair['id']}")).json()["choice"] == "tie"


async def test_reviews_without_a_judge_say_nothing_of_a_judge(trainer: Running, client: Client, tmp_path: Path) -> None:
    strict = read_endpoints(tmp_path / "endpoints.toml").judge("strict")
    pair = ReviewPair(
        judge="strict",
        digest=strict.digest,
        example="q0",
        turns=(ChatMessage(role="user", content="Question 0?"),),
        reference="",
        first="mine 0",
        second="other 0",
        first_is="candidate",
        vote="base",
        candidate="shop@3",
        base="base",
    )
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / REVIEWS).write_text(pair.model_dump_json() + "\n")
    await trainer.trainer.reviews.take(Ownership("default", ["voice"]), "eval-judged", tmp_path / "judged")
    evaluation = await evaluated(trainer, client)
    await created(client, evaluation)
    await choose_all(client.http, evaluation)
    await choose_all(client.http, "eval-judged")
    without, judged = (await client.http.get("/v1/reviews")).json()["data"]
    assert (without["id"], without["standing"], judged["standing"]["pairs"]) == (evaluation, None, 1)
    assert (await trainer.trainer.reviews.standing("default", strict)).pairs == 1
    assert judged["people"]["candidate"] == 1, "what people prefer is shown beside the judge's agreement, too"
    assert (judged["people"]["differing"], judged["people"]["alike"]) == (None, None)


async def test_a_jobs_answers_can_be_reviewed(trainer: Running, client: Client) -> None:
    """Its directory has the same files; the run is looked for among both kinds."""
    new = NewRun(
        id="ftjob-1",
        kind="finetune",
        project="default",
        key_id="k",
        run_key_id="j",
        created_at=1,
        body={"model": "m", "training_file": "f"},
        adapters=("voice",),
        details={"adapter": "voice", "seed": 0, "device": "cpu"},
        status=Status.SUCCEEDED,
    )
    await trainer.trainer.database.run(lambda db: run_records.add(db, new, None))
    leave_answers(trainer.trainer.jobs.directories.path_of("ftjob-1"))
    assert (await created(client, "ftjob-1"))["pairs"] == 6


async def test_paging_passes_from_the_newest_evaluation_to_older_ones_without_loss(
    trainer: Running, client: Client
) -> None:
    oldest, newer, newest = [await evaluated(trainer, client, differing=2) for _ in range(3)]
    for evaluation in (oldest, newer, newest):
        await created(client, evaluation)

    async def after(review: str | None, **params: str) -> Any:
        params |= {} if review is None else {"after": review}
        return (await client.http.get("/v1/reviews/next", params=params)).json()["review"]

    seen, review = [], await after(None)
    while review is not None:
        seen.append(review)
        review = await after(review["id"])
    assert [each["evaluation"] for each in seen] == [newest, newest, newer, newer, oldest, oldest]
    assert len({each["id"] for each in seen}) == 6
    assert await after(seen[2]["id"], evaluation=newer) == seen[3]
    assert await after(seen[3]["id"], evaluation=newer) is None
