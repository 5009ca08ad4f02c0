"""`/v1/reviews` of a trainer in this process: blind pairs, one choice each, agreement, projects apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.authorization import Ownership
from tests.unit.trainer.finetune.conftest import FakeGateway, gateway
from tests.unit.trainer.finetune.trainers import Running, running
from trainer.evaluate.arms import ChatMessage
from trainer.evaluate.endpoints import JudgeSettings, read_endpoints
from trainer.evaluate.pairs import AGREEMENT, REVIEWS, JudgeAgreement, ReviewPair
from trainer.evaluate.statistics import agreement

__all__ = ["gateway"]
RUBRIC = "The better answer is right, and says so shortly."
TOML = f"""
[endpoints.big]
url = "http://127.0.0.1:1"
[judges.strict]
endpoint = "big"
model = "large-1"
rubric = "{RUBRIC}"
least_reviews = 50
"""
SETTINGS = JudgeSettings(endpoint="big", model="large-1", rubric=RUBRIC, least_reviews=50)


def pair(at: int, vote: Any = "candidate") -> ReviewPair:
    first: Any = "candidate" if at % 2 else "base"
    mine, other = f"mine {at}", f"other {at}"
    return ReviewPair(
        judge="strict",
        digest=SETTINGS.digest,
        example=f"q{at}",
        turns=(ChatMessage(role="user", content=f"Question {at}?"),),
        reference=f"Reference {at}.",
        first=mine if first == "candidate" else other,
        second=other if first == "candidate" else mine,
        first_is=first,
        vote=vote,
        candidate="shop@3",
        base="base",
    )


def leave(folder: Path, pairs: list[ReviewPair]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REVIEWS).write_text("".join(each.model_dump_json() + "\n" for each in pairs))


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: FakeGateway) -> AsyncIterator[Running]:
    (tmp_path / "endpoints.toml").write_text(TOML)
    async with running(tmp_path, base_dir, gateway, endpoints=tmp_path / "endpoints.toml") as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> httpx.AsyncClient:
    return trainer.client().http


async def queued(trainer: Running, tmp_path: Path, name: str = "eval-1", count: int = 4, **more: Any) -> None:
    leave(tmp_path / name, [pair(at, **more) for at in range(count)])
    assert await trainer.trainer.reviews.take(Ownership("default"), name, tmp_path / name) == count


async def following(client: httpx.AsyncClient, **params: str) -> Any:
    answer = await client.get("/v1/reviews/next", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def choose(client: httpx.AsyncClient, review_id: str, choice: str) -> httpx.Response:
    return await client.post(f"/v1/reviews/{review_id}", json={"choice": choice})


async def choose_all(client: httpx.AsyncClient, evaluation: str, better: Any) -> None:
    """Look at every pair; `better` says of both texts which is, as a person would."""
    while (found := await following(client, evaluation=evaluation))["review"] is not None:
        review = found["review"]
        answer = await choose(client, review["id"], better(review["first"], review["second"]))
        assert answer.status_code == 200, answer.text


def mine(first: str, _second: str) -> str:
    return "first" if first.startswith("mine") else "second"


async def test_a_pair_is_shown_blind(trainer: Running, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await queued(trainer, tmp_path)
    found = await following(client)
    review = found["review"]
    assert (found["evaluation"], found["reviewed"], found["total"]) == ("eval-1", 0, 4)
    assert review["asked"] == [{"role": "user", "content": "Question 0?"}]
    assert (review["first"], review["second"], review["reference"]) == ("other 0", "mine 0", "Reference 0.")
    assert review["choice"] is None
    assert set(review) == {
        *("object", "id", "evaluation", "asked", "reference", "first", "second", "choice", "chosen_at"),
    }
    assert "shop@3" not in str(found)
    assert (await client.get(f"/v1/reviews/{review['id']}")).json() == review


async def test_pairs_come_one_after_another_until_none_is_left(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await queued(trainer, tmp_path)
    seen = []
    while (found := await following(client))["review"] is not None:
        seen.append(found["review"]["asked"][0]["content"])
        assert (await choose(client, found["review"]["id"], "tie")).json()["choice"] == "tie"
    assert seen == [f"Question {at}?" for at in range(4)]
    assert (found["evaluation"], found["reviewed"], found["total"]) == (None, 0, 0)
    found = await following(client, evaluation="eval-1")
    assert (found["review"], found["reviewed"], found["total"]) == (None, 4, 4)


async def test_a_pair_may_be_skipped_and_comes_again(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await queued(trainer, tmp_path)
    first = (await following(client))["review"]
    second = (await following(client, after=first["id"]))["review"]
    assert second["asked"][0]["content"] == "Question 1?"
    assert (await following(client))["review"] == first


async def test_a_choice_may_change_until_all_are_made(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await queued(trainer, tmp_path)
    first = (await following(client))["review"]["id"]
    assert (await choose(client, first, "first")).json()["choice"] == "first"
    assert (await choose(client, first, "second")).json()["choice"] == "second"
    await choose_all(client, "eval-1", mine)
    assert (await choose(client, first, "second")).status_code == 200
    answer = await choose(client, first, "tie")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "review_final")
    assert answer.headers["x-should-retry"] == "false"
    opened = (await client.get(f"/v1/reviews/{first}")).json()
    assert (opened["first_is"], opened["judge_vote"], opened["vote"]) == ("base", "candidate", "candidate")


async def test_agreement_is_counted_from_the_judges_votes_and_peoples(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    leave(tmp_path / "eval-1", [pair(at, "candidate" if at < 40 else "base") for at in range(60)])
    await trainer.trainer.reviews.take(Ownership("default"), "eval-1", tmp_path / "eval-1")
    people = []

    def better(first: str, second: str) -> str:
        at = int(first.split()[1])
        people.append("candidate" if at < 45 else "base")
        return mine(first, second) if at < 45 else mine(second, first)

    (before,) = (await client.get("/v1/reviews")).json()["data"]
    assert (before["reviewed"], before["counted"], before["agreement"]["kappa"]) == (0, False, None)
    assert "people have looked at 0 of its votes, and 50 are needed" in before["sentence"]
    await choose_all(client, "eval-1", better)
    (after,) = (await client.get("/v1/reviews")).json()["data"]
    wanted = agreement.agreement(["candidate"] * 40 + ["base"] * 20, people)
    assert wanted.kappa is not None
    votes = {"candidate": 1.0, "base": 0.0}
    lean = agreement.lean([1.0] * 40 + [0.0] * 20, [votes[vote] for vote in people])
    assert after["agreement"] == {
        "pairs": 60,
        "kappa": pytest.approx(wanted.kappa),
        "low": pytest.approx(wanted.low),
        "high": pytest.approx(wanted.high),
        "observed": pytest.approx(55 / 60),
        "lean": pytest.approx(-5 / 60),
        "lean_low": pytest.approx(lean.low),
        "lean_high": pytest.approx(lean.high),
        "confidence": 0.98,
    }
    assert "gives the candidate 8.3 points of 100 fewer than people do" in after["sentence"]
    assert (before["more_reviews"], after["more_reviews"]) == (50, 0)
    assert (after["final"], after["counted"], after["judge"], after["id"]) == (True, True, "strict", "eval-1")


async def test_how_far_a_judge_leans_from_people_is_not_told_while_they_still_choose(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Its votes are in the report: with its lean, they would tell what people prefer."""
    leave(tmp_path / "eval-1", [pair(at, "candidate" if at < 42 else "base") for at in range(60)])
    await trainer.trainer.reviews.take(Ownership("default"), "eval-1", tmp_path / "eval-1")
    for _ in range(55):
        found = (await following(client, evaluation="eval-1"))["review"]
        at = int(found["first"].split()[1])
        better = mine(found["first"], found["second"]) if at < 36 else mine(found["second"], found["first"])
        await choose(client, found["id"], better)
    (queue,) = (await client.get("/v1/reviews")).json()["data"]
    assert (queue["reviewed"], queue["final"], queue["people"]) == (55, False, None)
    for shown in (queue["agreement"], queue["standing"]):
        assert (shown["pairs"], shown["lean"], shown["lean_low"], shown["lean_high"]) == (55, None, None, None)
        assert shown["kappa"] is not None
    assert "points of 100" not in queue["sentence"]
    assert "lean" not in queue["sentence"].partition(";")[0]
    ended = (await client.post("/v1/reviews/eval-1/end")).json()
    assert ended["agreement"]["lean"] == pytest.approx(6 / 55)
    assert "points of 100 more than people do" in ended["sentence"]


async def test_a_judge_keeps_its_standing_over_evaluations_and_it_lies_in_the_next_ones_folder(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    reviews = trainer.trainer.reviews
    for name in ("eval-1", "eval-2"):
        leave(tmp_path / name, [pair(at, "candidate" if at % 3 else "base") for at in range(30)])
        await reviews.take(Ownership("default"), name, tmp_path / name)
        await choose_all(client, name, lambda one, two: mine(one, two) if int(one.split()[1]) % 3 else mine(two, one))
    (tmp_path / "eval-3").mkdir()
    await reviews.prepare("default", "strict", tmp_path / "eval-3")
    standing = JudgeAgreement.model_validate_json((tmp_path / "eval-3" / AGREEMENT).read_bytes())
    assert (standing.pairs, standing.kappa) == (60, 1.0)
    assert standing.counts(SETTINGS)
    assert not standing.counts(SETTINGS.model_copy(update={"model": "large-2"}))
    (tmp_path / "eval-4").mkdir()
    await reviews.prepare("acme", "strict", tmp_path / "eval-4")
    assert JudgeAgreement.model_validate_json((tmp_path / "eval-4" / AGREEMENT).read_bytes()).pairs == 0
    await reviews.prepare("default", None, tmp_path / "eval-1")
    await reviews.prepare("default", "no-more", tmp_path / "eval-1")
    assert not (tmp_path / "eval-1" / AGREEMENT).exists()


async def test_a_judges_standing_counts_no_review_that_is_not_final(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Its choices may still change; and whoever saw the lean with and without them would know them."""
    for name, reviewed in (("eval-1", 20), ("eval-2", 13)):
        await queued(trainer, tmp_path, name, 20)
        for _ in range(reviewed):
            found = (await following(client, evaluation=name))["review"]
            await choose(client, found["id"], mine(found["first"], found["second"]))
    open_one, final = (await client.get("/v1/reviews")).json()["data"]
    assert (final["id"], final["final"], open_one["final"]) == ("eval-1", True, False)
    assert (final["standing"]["pairs"], open_one["standing"]["pairs"]) == (20, 33)
    (tmp_path / "eval-3").mkdir()

    async def handed_on() -> int:
        await trainer.trainer.reviews.prepare("default", "strict", tmp_path / "eval-3")
        return JudgeAgreement.model_validate_json((tmp_path / "eval-3" / AGREEMENT).read_bytes()).pairs

    assert await handed_on() == 20
    assert (await client.post("/v1/reviews/eval-2/end")).status_code == 200
    assert await handed_on() == 33


async def test_a_judge_that_agrees_but_leans_towards_the_candidate_does_not_count(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """It agrees on 54 of 60 pairs (κ = 0.78), and gave the candidate all six others, which people gave to the base."""
    leave(tmp_path / "eval-1", [pair(at, "candidate" if at < 42 else "base") for at in range(60)])
    await trainer.trainer.reviews.take(Ownership("default"), "eval-1", tmp_path / "eval-1")

    def better(first: str, second: str) -> str:
        return mine(first, second) if int(first.split()[1]) < 36 else mine(second, first)

    await choose_all(client, "eval-1", better)
    (queue,) = (await client.get("/v1/reviews")).json()["data"]
    assert (queue["counted"], queue["standing"]["lean"]) == (False, pytest.approx(0.1))
    assert queue["standing"]["kappa"] > 0.75
    assert "it leans towards the candidate" in queue["sentence"]
    assert "gives the candidate 10 points of 100 more than people do" in queue["sentence"]
    assert queue["more_reviews"] is None


async def test_pairs_are_taken_in_once(trainer: Running, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await queued(trainer, tmp_path)
    await queued(trainer, tmp_path)
    assert (await following(client))["total"] == 4


async def test_an_answer_may_hold_what_unicode_takes_for_the_end_of_a_line(trainer: Running, tmp_path: Path) -> None:
    folder = tmp_path / "eval-1"
    leave(folder, [pair(0), pair(1).model_copy(update={"reference": "one\u2028two\u2029three\u0085four"})])
    assert await trainer.trainer.reviews.take(Ownership("default"), "eval-1", folder) == 2


@pytest.mark.parametrize("content", [None, "", "no pair\n"])
async def test_a_folder_without_pairs_leaves_none(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "eval-1"
    folder.mkdir()
    if content is not None:
        (folder / REVIEWS).write_text(content)
    assert await trainer.trainer.reviews.take(Ownership("default"), "eval-1", folder) == 0
    assert (await client.get("/v1/reviews")).json()["data"] == []


async def test_another_projects_reviews_are_not_there(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    await queued(trainer, tmp_path)
    review = (await following(client))["review"]["id"]
    other = trainer.client("acme").http
    assert (await other.get("/v1/reviews")).json()["data"] == []
    assert (await following(other))["review"] is None
    found = [
        await other.get(f"/v1/reviews/{review}"),
        await choose(other, review, "first"),
        await other.get("/v1/reviews/next", params={"after": review}),
        await other.get("/v1/reviews/next", params={"evaluation": "eval-1"}),
        await other.get("/v1/reviews", params={"after": "eval-1"}),
    ]
    assert [answer.status_code for answer in found] == [404] * 5
    missing = await other.get("/v1/reviews/rev-none")
    assert missing.json()["error"]["code"] == found[0].json()["error"]["code"] == "review_not_found"


async def test_evaluations_are_listed_newest_first_by_pages(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    for number in range(3):
        await queued(trainer, tmp_path, f"eval-{number}")
    page = (await client.get("/v1/reviews", params={"limit": 2})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (["eval-2", "eval-1"], True)
    page = (await client.get("/v1/reviews", params={"limit": 2, "after": page["last_id"]})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (["eval-0"], False)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"choice": "both"}, "choice", "invalid_value"),
        ({}, "choice", "invalid_value"),
        ({"choice": "first", "why": "it is"}, "why", "unknown_parameter"),
    ],
)
async def test_what_is_no_choice_is_refused(
    trainer: Running, client: httpx.AsyncClient, tmp_path: Path, body: Any, param: str, code: str
) -> None:
    await queued(trainer, tmp_path)
    review = (await following(client))["review"]["id"]
    answer = await client.post(f"/v1/reviews/{review}", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


async def test_a_jobs_worker_hears_of_the_judge_and_its_pairs_come_in(trainer: Running, tmp_path: Path) -> None:
    client = trainer.client()
    made = await client.create(metadata={"judge": "strict", "hold": "3"})
    await client.at_step(made.id, 3)
    folder = trainer.trainer.jobs.directories.path_of(made.id)
    assert JudgeAgreement.model_validate_json((folder / AGREEMENT).read_bytes()).digest == SETTINGS.digest
    leave(folder, [pair(at) for at in range(3)])
    await client.http.post(f"/v1/fine_tuning/jobs/{made.id}/cancel")
    await client.ended(made.id)
    found = await following(client.http, evaluation=made.id)
    assert (found["total"], found["review"]["evaluation"]) == (3, made.id)


def test_the_settings_of_this_file_are_those_of_the_toml(tmp_path: Path) -> None:
    (tmp_path / "endpoints.toml").write_text(TOML)
    assert read_endpoints(tmp_path / "endpoints.toml").judge("strict") == SETTINGS


async def test_a_key_that_may_not_use_an_adapter_sees_no_pair_of_it(trainer: Running, tmp_path: Path) -> None:
    """Its globs stand in a header of the gateway's; of queues from before they were noted it sees none either."""
    for name, adapters in (("eval-1", ["shop"]), ("eval-2", ["shop", "other"])):
        leave(tmp_path / name, [pair(0)])
        await trainer.trainer.reviews.take(Ownership("default", adapters), name, tmp_path / name)
    leave(tmp_path / "eval-3", [pair(0)])
    await trainer.trainer.reviews.take(Ownership("default"), "eval-3", tmp_path / "eval-3")
    await trainer.trainer.reviews._database.run(
        lambda db: db.exec_driver_sql("UPDATE queues SET adapters = NULL WHERE evaluation = 'eval-3'")
    )
    client = trainer.client().http
    hidden = (await following(client, evaluation="eval-2"))["review"]["id"]
    client.headers["x-hatrack-adapters"] = "sh*"
    listed = (await client.get("/v1/reviews")).json()["data"]
    assert [queue["id"] for queue in listed] == ["eval-1"]
    found = await following(client)
    assert found["evaluation"] == "eval-1"
    assert (await choose(client, found["review"]["id"], "tie")).status_code == 200
    assert (await following(client))["review"] is None
    for method, path in (
        ("GET", "/v1/reviews/next?evaluation=eval-2"),
        ("GET", "/v1/reviews/next?evaluation=eval-3"),
        ("GET", f"/v1/reviews/{hidden}"),
        ("POST", f"/v1/reviews/{hidden}"),
    ):
        answer = await client.request(method, path, json={"choice": "tie"} if method == "POST" else None)
        assert answer.status_code == 404, (path, answer.text)
