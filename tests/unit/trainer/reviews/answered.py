"""Evaluations that have left their answers, a trainer that knows them, and people who choose between the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.trainer.evaluate.evaluations.conftest import gateway
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import EvaluationGateway
from tests.unit.trainer.evaluate.evaluations.trainer_app import CONTEXT, Client, Running, running
from trainer.evaluate.answers import Answer
from trainer.evaluate.arms import ChatMessage, Question
from trainer.evaluate.evaluations.spec import ANSWERS, EXAMPLE_SCORES, QUESTIONS, REPORT
from trainer.evaluate.revalidation import RecordedArm, VerdictScores
from trainer.evaluate.spec import MetricOptions

__all__ = ["gateway"]
CANDIDATE = str(CONTEXT["candidate"])
BASE = "base"
TOML = """
[endpoints.big]
url = "http://127.0.0.1:1"
[judges.strict]
endpoint = "big"
model = "large-1"
rubric = "The better answer is right."
least_reviews = 50
"""


@pytest.fixture
async def trainer(tmp_path: Path, base_dir: Path, gateway: EvaluationGateway) -> AsyncIterator[Running]:
    (tmp_path / "endpoints.toml").write_text(TOML)
    async with running(tmp_path, base_dir, gateway, endpoints=tmp_path / "endpoints.toml") as found:
        yield found


@pytest.fixture
def client(trainer: Running) -> Client:
    return trainer.client()


def answer(arm: str, number: int, text: str, repeat: int = 0) -> str:
    return Answer(arm=arm, example=f"q{number}", repeat=repeat, request="r", text=text).model_dump_json() + "\n"


def leave_answers(
    directory: Path, differing: int = 6, alike: int = 0, metric: str = "rouge_l", units: tuple[int, ...] | None = None
) -> None:
    """What a worker leaves of an evaluation with a verdict: questions, all arms' answers of two runs, and scores."""
    directory.mkdir(parents=True, exist_ok=True)
    count = differing + alike
    questions = [
        Question(
            id=f"q{number}",
            turns=(ChatMessage(role="user", content=f"Question {number}?"),),
            reference=f"Reference {number}.",
        )
        for number in range(count)
    ]
    (directory / QUESTIONS).write_text("".join(question.model_dump_json() + "\n" for question in questions))
    lines = []
    for number in range(count):
        same = number >= differing
        lines.append(answer(CANDIDATE, number, "Alike." if same else f"<think>hm</think>mine {number}"))
        lines.append(answer(BASE, number, " Alike. " if same else f"other {number}"))
        lines.append(answer(CANDIDATE, number, f"later run {number}", repeat=1))
        lines.append(answer("base (list)", number, f"weaker base {number}"))
    (directory / ANSWERS).write_text("".join(lines))
    arms = {
        label: RecordedArm(label=label, scores=(0.5,) * count, answers=("d",) * count) for label in (CANDIDATE, BASE)
    }
    scores = VerdictScores(
        metric=MetricOptions(name=metric),
        binary=False,
        questions=tuple(question.id for question in questions),
        candidate=arms[CANDIDATE],
        base=arms[BASE],
        units=units,
    )
    (directory / EXAMPLE_SCORES).write_text(scores.model_dump_json(by_alias=True))
    (directory / REPORT).write_text('{"verdict": {"candidate": "voice@3"}, "metric": "rouge_l"}')


async def evaluated(trainer: Running, client: Client, **answers: Any) -> str:
    """The id of an evaluation that has ended, with its answers in its directory."""
    evaluation = await client.made()
    assert (await client.ended(evaluation))["status"] == "succeeded"
    leave_answers(trainer.directories.path_of(evaluation), **answers)
    return evaluation


def reviewer(trainer: Running, key_id: str, **headers: str) -> httpx.AsyncClient:
    """One person's way to the trainer: a key of its own."""
    http = trainer.client().http
    http.headers.update({"x-hatrack-key-id": key_id, **headers})
    return http


async def created(client: Client, evaluation: str, **more: Any) -> dict[str, Any]:
    made = await client.http.post("/v1/reviews", json={"evaluation": evaluation, **more})
    assert made.status_code == 200, made.text
    queue: dict[str, Any] = made.json()
    return queue


async def listed(client: Client) -> dict[str, Any]:
    (queue,) = (await client.http.get("/v1/reviews")).json()["data"]
    found: dict[str, Any] = queue
    return found


async def following(http: httpx.AsyncClient, evaluation: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/v1/reviews/next", params={"evaluation": evaluation})).json()
    return found


def number_of(review: dict[str, Any]) -> int:
    """The number of the question that a pair answers."""
    return int(review["asked"][0]["content"].removeprefix("Question ").removesuffix("?"))


async def choose(http: httpx.AsyncClient, review: dict[str, Any], better: str) -> httpx.Response:
    """Choose the answer that begins with this word; `tie` for neither."""
    choice = better if better == "tie" else "first" if review["first"].startswith(better) else "second"
    return await http.post(f"/v1/reviews/{review['id']}", json={"choice": choice})


async def choose_all(http: httpx.AsyncClient, evaluation: str, better: dict[int, str] | None = None) -> int:
    """Choose on every pair that is left: `mine`, but for these numbers of questions; returns how many it chose on."""
    chosen = 0
    while (review := (await following(http, evaluation))["review"]) is not None:
        assert (await choose(http, review, (better or {}).get(number_of(review), "mine"))).status_code == 200
        chosen += 1
    return chosen
