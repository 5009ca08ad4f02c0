"""MMLU and GSM8K through the harness, over a gateway whose models know what the test lets them know."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.evaluate.conftest import Gateway, pieces, token
from tests.unit.trainer.evaluate.suites.conftest import BASE, CANDIDATE, MakeContext
from trainer.errors import AnswerRefused, SuiteUnavailable
from trainer.evaluate.suites.measured import gsm8k, mmlu

LETTERS = "ABCD"


def write_mmlu(folder: Path, count: int = 40, *, dev: int = 5) -> None:
    (folder / "mmlu").mkdir(parents=True)
    for kind, number in (("test", count), ("dev", dev)):
        rows = [
            {
                "question": f"{kind} question {at} of {subject}",
                "choices": [f"choice {at}{letter}" for letter in LETTERS],
                "answer": at % 4,
                "subject": subject,
            }
            for subject in ("abstract_algebra", "law")
            for at in range(number // 2 if kind == "test" else number)
        ]
        (folder / "mmlu" / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_gsm8k(folder: Path, count: int = 30) -> None:
    (folder / "gsm8k").mkdir(parents=True)
    rows = [
        {"question": f"Problem {at}: {at} + 1000?", "answer": f"It is so.\n#### {1000 + at:,}"} for at in range(count)
    ]
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def knows(gateway: Gateway, right: dict[str, int]) -> None:
    """Each model finds the right letter likeliest where the question's number is below its own; else the next one."""

    def scores(model: str, text: str) -> list[dict[str, Any] | None]:
        number = int(text.rpartition("test question ")[2].split()[0])
        letter = LETTERS[(number + (number >= right[model])) % 4]
        whole = pieces(text)
        row = [
            {str(token(piece)): {"logprob": -0.1 if piece.strip() == letter else -5.0, "rank": 1}} for piece in whole
        ]
        return [None, *row[1:]]

    gateway._scores = scores  # type: ignore[method-assign]


async def test_mmlu_counts_the_likeliest_letter(gateway: Gateway, make_context: MakeContext, tmp_path: Path) -> None:
    write_mmlu(tmp_path / "data")
    knows(gateway, {"base": 15, "shop@3": 10})
    stages: list[tuple[str, int, int]] = []
    result = await mmlu(make_context()).run(BASE, CANDIDATE, lambda *stage: stages.append(stage))
    assert result.numbers["accuracy"] == {"before": 0.75, "after": 0.5}
    assert result.numbers["lost"] == [
        f"{subject}/{at}" for subject in ("abstract_algebra", "law") for at in range(11, 16)
    ]
    assert (result.state, result.silent) == ("broken", False)
    assert "40 of 40 test questions" in result.sentence
    assert stages[-1] == ("mmlu, candidate", 40, 40)


async def test_mmlu_is_asked_as_the_harness_asks_it(
    gateway: Gateway, make_context: MakeContext, tmp_path: Path
) -> None:
    write_mmlu(tmp_path / "data")
    knows(gateway, {"base": 20, "shop@3": 20})
    await mmlu(make_context()).run(BASE, CANDIDATE)
    # several are asked at once: which comes first is nobody's to say
    asked = [body for path, body in gateway.requests if path == "/v1/completions"]
    assert len(asked) == 2 * 40
    first = [body for body in asked if "test question 0 of abstract" in body["prompt"]]
    assert len(first) == 2  # the base and the candidate
    stem = first[0]["prompt"]
    assert stem.startswith("The following are multiple choice questions (with answers) about abstract algebra.\n\n")
    assert stem.count("dev question") == 5
    assert stem.endswith("D. choice 0D\nAnswer:")
    assert first[0]["logprob_token_ids"] == [token(f" {letter}") for letter in LETTERS]


async def test_without_development_questions_none_is_shown(gateway: Gateway, make_context: MakeContext) -> None:
    gateway.likely = {"base": {"A"}, "shop@3": {"A"}}
    result = await mmlu(make_context(limit=20)).run(BASE, CANDIDATE)
    assert all(body["prompt"].count("Answer:") == 1 for _, body in gateway.requests)
    assert result.numbers["questions"] == 20
    assert "20 of 281 development questions" in result.sentence


@pytest.mark.slow
async def test_who_says_a_always_is_at_chance_and_the_suite_silent(gateway: Gateway, make_context: MakeContext) -> None:
    gateway.likely = {"base": {"A"}, "shop@3": {"B"}}
    result = await mmlu(make_context()).run(BASE, CANDIDATE)
    assert result.silent
    assert "at chance: the suite cannot show a loss" in result.sentence


async def test_gsm8k_takes_the_last_number_before_a_stop_word(
    gateway: Gateway, make_context: MakeContext, tmp_path: Path
) -> None:
    write_gsm8k(tmp_path / "data")

    def say(model: str, asked: str) -> str:
        number = int(asked.rpartition("Problem ")[2].split(":")[0])
        right = number < (24 if model == "base" else 12)
        return f"{number} and 1000 make {1000 + number if right else 7:,}. Q: And 5?"

    gateway.say = say
    result = await gsm8k(make_context()).run(BASE, CANDIDATE)
    assert result.numbers["accuracy"] == {"before": 0.8, "after": 0.4}
    assert result.state == "broken"
    asked = [text for _, text in gateway.asked()]
    assert all(text.count("Q: ") == 9 for text in asked)
    assert any(text.endswith("Problem 0: 0 + 1000?\nA:") for text in asked)


@pytest.mark.slow
async def test_what_was_answered_is_not_asked_again(
    gateway: Gateway, make_context: MakeContext, tmp_path: Path
) -> None:
    write_gsm8k(tmp_path / "data")
    write_mmlu(tmp_path / "data")
    knows(gateway, {"base": 20, "shop@3": 20})
    first = [await suite(make_context()).run(BASE, CANDIDATE) for suite in (mmlu, gsm8k)]
    asked = len(gateway.requests)
    assert [await suite(make_context()).run(BASE, CANDIDATE) for suite in (mmlu, gsm8k)] == first
    assert len(gateway.requests) == asked


async def test_the_limit_draws_the_same_questions_for_both(
    gateway: Gateway, make_context: MakeContext, tmp_path: Path
) -> None:
    write_gsm8k(tmp_path / "data", 60)
    await gsm8k(make_context(limit=20)).run(BASE, CANDIDATE)
    by_model: dict[str, set[str]] = {}
    for model, asked in gateway.asked():
        by_model.setdefault(model, set()).add(asked)
    assert by_model["base"] == by_model["shop@3"]
    assert len(by_model["base"]) == 20


async def test_a_refusal_ends_the_suite(gateway: Gateway, make_context: MakeContext, tmp_path: Path) -> None:
    write_gsm8k(tmp_path / "data")
    gateway.refused_models["shop@3"] = (400, "context_length_exceeded", {})
    with pytest.raises(AnswerRefused, match="candidate"):
        await gsm8k(make_context()).run(BASE, CANDIDATE)


async def test_an_order_to_end_is_obeyed_and_leaves_no_thread(
    gateway: Gateway, make_context: MakeContext, tmp_path: Path
) -> None:
    class Ended(Exception):
        pass

    def end(stage: str, done: int, total: int) -> None:
        if done >= 5:
            raise Ended

    write_gsm8k(tmp_path / "data")
    before = {thread for thread in threading.enumerate() if "asyncio" not in thread.name}
    with pytest.raises(Ended):
        await gsm8k(make_context()).run(BASE, CANDIDATE, end)
    asked = len(gateway.requests)
    assert asked < 30
    assert {thread for thread in threading.enumerate() if "asyncio" not in thread.name} <= before | {
        thread for thread in threading.enumerate() if "process_request" in thread.name
    }


async def test_no_data_are_an_error_before_anything_is_asked(gateway: Gateway, make_context: MakeContext) -> None:
    with pytest.raises(SuiteUnavailable, match=r"test\.jsonl"):
        await gsm8k(make_context()).run(BASE, CANDIDATE)
    assert gateway.requests == []
