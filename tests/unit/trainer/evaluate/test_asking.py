from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.costs import TokenPrices
from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import asked, questions
from trainer.errors import (
    AnswerRefused,
    AnswerUnreadable,
    ArmUnservable,
    EndpointUnknown,
    GatewayUnreachable,
)
from trainer.evaluate.arms import Arm, Prompt
from trainer.evaluate.asking import ArmRequest, HttpAnswerer
from trainer.evaluate.endpoint_client import Endpoint
from trainer.runs.protocol import OutsideCharge

TUNED = Arm(label="tuned", model="voice@3")
BASE = Arm(label="base", model="smol", prompt=Prompt(system="Be kind."))


async def at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def answerer(gateway: Gateway, tmp_path: Path) -> Any:
    def make(**changes: Any) -> HttpAnswerer:
        values = {"wait": at_once, "concurrency": 4, **changes}
        return HttpAnswerer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "answers.jsonl", **values)

    return make


def asks(count: int, *arms: Arm, repeats: int = 1) -> list[ArmRequest]:
    return [
        ArmRequest(arm, question, at)
        for at in range(repeats)
        for question in questions(count)
        for arm in arms or (TUNED,)
    ]


async def test_every_arm_answers_every_question_in_order(gateway: Gateway, answerer: Any) -> None:
    seen: list[tuple[int, int]] = []
    found = await answerer().answer(asks(3, TUNED, BASE), lambda done, total: seen.append((done, total)))
    assert [(each.arm, each.text) for each in found] == [
        (label, f"{model} says {asked(at)}")
        for at in range(3)
        for label, model in (("tuned", "voice@3"), ("base", "smol"))
    ]
    assert seen == [(done, 6) for done in range(7)]
    assert found[0].prompt_tokens == 7
    assert found[0].finish_reason == "stop"


async def test_an_outside_endpoint_is_asked_as_the_settings_say(gateway: Gateway, answerer: Any) -> None:
    endpoint = Endpoint(
        gateway.url,
        SecretStr(KEY),
        max_tokens_field="max_completion_tokens",
        temperature=False,
        fields={"reasoning_effort": "low"},
    )
    arm = Arm(label="theirs", model="large-1", endpoint="big")
    await answerer(max_tokens=33, endpoints={"big": endpoint}).answer(asks(1, arm))
    ((_, body),) = gateway.requests
    assert body == {
        "model": "large-1",
        "messages": [{"role": "user", "content": asked(0)}],
        "max_completion_tokens": 33,
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
async def test_where_it_may_a_question_that_is_refused_is_left_out(
    gateway: Gateway, answerer: Any, status: int
) -> None:
    gateway.refusals = [(status, "content_filter", {})]
    first = await answerer(concurrency=1).answer_or_skip(asks(3))
    assert [answer is None for answer in first] == [True, False, False]
    again = await answerer().answer_or_skip(asks(3))
    assert (None in again, again[1:], len(gateway.requests)) == (False, first[1:], 4)
    gateway.raw = {"choices": []}
    assert await answerer().answer_or_skip(asks(4)) == [*again, None]


@pytest.mark.parametrize("status", [401, 402, 404, 410])
async def test_refusals_of_the_caller_or_the_model_are_not_skipped(
    gateway: Gateway, answerer: Any, status: int
) -> None:
    gateway.refused_models["voice@3"] = (status, "no", {})
    with pytest.raises(AnswerRefused):
        await answerer().answer_or_skip(asks(3))


async def test_it_is_asked_greedily_with_the_arms_prompt(gateway: Gateway, answerer: Any) -> None:
    await answerer(max_tokens=33).answer(asks(1, BASE))
    ((path, body),) = gateway.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "smol",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": asked(0)}],
        "temperature": 0,
        "max_tokens": 33,
    }


async def test_a_grounding_goes_along_as_it_is(gateway: Gateway, answerer: Any) -> None:
    grounded = Arm(label="grounded", model="voice@3", grounding={"vector_store_ids": ["vs_1"]})
    bare = Arm(label="bare", model="voice@3", grounding=False)
    await answerer(concurrency=1).answer(asks(1, grounded, bare, TUNED))
    sent = [body.get("grounding", "unset") for _, body in gateway.requests]
    assert sent == [{"vector_store_ids": ["vs_1"]}, False, "unset"]


async def test_no_more_at_once_than_is_allowed(gateway: Gateway, answerer: Any) -> None:
    three, overlap = threading.Event(), []

    def say(model: str, asked: str) -> str:
        if gateway.at_once >= 3:
            three.set()
        overlap.append(three.wait(60))  # the first ones wait for each other
        return f"{model} says {asked}"

    gateway.say, gateway.delay_s = say, 0.02
    await answerer(concurrency=3).answer(asks(12))
    assert all(overlap)
    assert gateway.most_at_once == 3


async def test_only_changed_requests_are_asked_again(gateway: Gateway, answerer: Any) -> None:
    await answerer().answer(asks(4))
    await answerer().answer(asks(6))
    assert len(gateway.asked()) == 6
    other = Arm(label="tuned", model="voice@4")
    found = await answerer().answer(asks(6, other))
    assert len(gateway.asked()) == 12
    assert found[0].text.startswith("voice@4")


async def test_the_same_question_is_asked_again_for_another_repeat(gateway: Gateway, answerer: Any) -> None:
    found = await answerer().answer(asks(2, repeats=3))
    assert len(gateway.asked()) == 6
    assert [each.repeat for each in found] == [0, 0, 1, 1, 2, 2]


async def test_a_busy_or_absent_gateway_is_asked_again(gateway: Gateway, answerer: Any) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    gateway.refusals = [(503, "engine_unavailable", {"retry-after": "7"}), (429, "rate_limit_exceeded", {})]
    found = await answerer(wait=wait, concurrency=1).answer(asks(2))
    assert len(found) == 2
    assert waited == [7.0, 1.0]


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ((409, "version_other_base", {}), ArmUnservable),
        ((404, "model_not_found", {}), ArmUnservable),
        ((400, "context_length_exceeded", {}), AnswerRefused),
        ((429, "insufficient_quota", {"x-should-retry": "false"}), AnswerRefused),
    ],
)
async def test_a_final_refusal_stops_the_evaluation(
    gateway: Gateway, answerer: Any, refusal: Any, kind: type[AnswerRefused]
) -> None:
    gateway.refused_models = {"voice@3": refusal}
    with pytest.raises(AnswerRefused) as caught:
        await answerer(concurrency=2).answer(asks(20, BASE, TUNED))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.answer_code) == refusal[:2]
    assert "'tuned' (voice@3) did not answer example" in caught.value.message
    assert len([model for model, _ in gateway.asked() if model == "voice@3"]) <= 2


async def test_a_version_that_goes_away_in_the_middle_is_an_error_and_what_was_said_is_kept(
    gateway: Gateway, answerer: Any
) -> None:
    fifth = asked(5)

    def say(model: str, asked: str) -> str:
        if asked == fifth:
            gateway.refused_models = {"voice@3": (409, "version_corrupt", {})}
        return "yes"

    gateway.say = say
    with pytest.raises(ArmUnservable):
        await answerer(concurrency=1).answer(asks(10))
    gateway.refused_models = {}
    gateway.say = lambda *_: "yes"
    before = len(gateway.asked())
    assert len(await answerer().answer(asks(10))) == 10
    assert len(gateway.asked()) - before == 4


async def test_an_endpoint_unreachable_for_too_long_is_given_up(gateway: Gateway, answerer: Any) -> None:
    gateway.refused_models = {"voice@3": (503, "engine_unavailable", {})}
    with pytest.raises(AnswerRefused) as caught:
        await answerer(patience_s=0).answer(asks(1))
    assert caught.value.status == 503
    nobody = Arm(label="nobody", model="m", endpoint="nobody")
    with pytest.raises(GatewayUnreachable):
        await answerer(patience_s=0, endpoints={"nobody": Endpoint("http://127.0.0.1:9")}).answer(asks(1, nobody))


@pytest.mark.parametrize("raw", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "hi"}]}])
async def test_an_answer_without_text_is_no_answer(gateway: Gateway, answerer: Any, raw: dict[str, Any]) -> None:
    gateway.raw = raw
    with pytest.raises(AnswerUnreadable, match="returned no text for example 0"):
        await answerer().answer(asks(1))


async def test_outside_endpoints_are_those_of_the_settings(gateway: Gateway, answerer: Any) -> None:
    outside = Arm(label="other", model="big-model", endpoint="other")
    with pytest.raises(EndpointUnknown):
        await answerer().answer(asks(1, outside))
    assert gateway.requests == []
    with pytest.raises(AnswerRefused, match="invalid_api_key"):  # shown its own key and never the job's
        await answerer(endpoints={"other": Endpoint(gateway.url, SecretStr("theirs"))}).answer(asks(1, outside))
    found = await answerer(endpoints={"other": Endpoint(gateway.url, SecretStr(KEY))}).answer(asks(1, outside))
    assert found[0].text == f"big-model says {asked(0)}"


async def test_what_endpoints_outside_charge_is_told_for_every_answer_once(gateway: Gateway, answerer: Any) -> None:
    charges: list[OutsideCharge] = []
    prices = TokenPrices(input=2.0, output=10.0)
    theirs = {
        "other": Endpoint(gateway.url, SecretStr(KEY), prices=prices),
        "own": Endpoint(gateway.url, SecretStr(KEY)),
    }
    arms = [Arm(label=name, model="big-model", endpoint=name) for name in theirs]
    for _ in range(2):  # the second time all answers are in the file
        await answerer(endpoints=theirs, on_charge=charges.append).answer(asks(2, TUNED, *arms))
    tokens = {"prompt_tokens": 7, "completion_tokens": 3}
    priced, unpriced = (
        {"endpoint": name, "money": money, **tokens} for name, money in (("other", 44e-6), ("own", None))
    )
    assert sorted((each.model_dump() for each in charges), key=lambda each: each["endpoint"]) == [
        *[priced] * 2,
        *[unpriced] * 2,
    ]


@pytest.mark.parametrize("usage", [None, {}, "much", {"prompt_tokens": True}, {"prompt_tokens": -1}])
async def test_an_answer_without_text_has_been_charged_and_one_without_usage_has_no_known_price(
    gateway: Gateway, answerer: Any, usage: Any
) -> None:
    charges: list[OutsideCharge] = []
    priced = Endpoint(gateway.url, SecretStr(KEY), prices=TokenPrices(input=2.0, output=10.0))
    outside = answerer(endpoints={"other": priced}, on_charge=charges.append)
    gateway.raw = {"choices": [], "usage": usage}
    with pytest.raises(AnswerUnreadable):
        await outside.answer(asks(1, Arm(label="other", model="big-model", endpoint="other")))
    assert charges == [OutsideCharge(endpoint="other", prompt_tokens=0, completion_tokens=0, money=None)]


async def test_the_progress_callback_may_stop_the_evaluation(gateway: Gateway, answerer: Any) -> None:
    class Cancelled(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        await answerer(concurrency=2).answer(asks(50), stop)
    assert len(gateway.asked()) < 10


async def test_a_cancelled_asking_is_cancelled(gateway: Gateway, answerer: Any) -> None:
    go_on = threading.Event()
    gateway.say = lambda model, asked: f"{model}: {go_on.wait(60)}"
    task = asyncio.create_task(answerer(concurrency=2).answer(asks(40)))
    await asyncio.to_thread(until, lambda: gateway.at_once == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()  # a worker that still ran would go on with the next ones
    await asyncio.to_thread(until, lambda: gateway.at_once == 0)
    await asyncio.sleep(0.15)
    assert len(gateway.asked()) == 2


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


ASKER = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from tests.unit.trainer.evaluate.test_asking import asks
from trainer.evaluate.asking import HttpAnswerer
from trainer.evaluate.endpoint_client import Endpoint
url, key, book = sys.argv[1:]
asyncio.run(HttpAnswerer(Endpoint(url, SecretStr(key)), Path(book), concurrency=2).answer(asks(20)))
"""


@pytest.mark.slow
async def test_after_a_kill_only_what_is_missing_is_asked(gateway: Gateway, answerer: Any, tmp_path: Path) -> None:
    book, go_on = tmp_path / "answers.jsonl", threading.Event()

    def say(model: str, asked: str) -> str:
        if int(asked.split()[1].rstrip("?")) >= 10:
            go_on.wait(60)
        return f"{model} says {asked}"

    gateway.say = say
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", ASKER, gateway.url, KEY, str(book))
    await asyncio.to_thread(until, lambda: book.exists() and len(book.read_bytes().splitlines()) == 10)
    await asyncio.to_thread(until, lambda: len(gateway.asked()) == 12)  # two are on their way when it dies
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    go_on.set()
    before = len(gateway.asked())
    found = await answerer().answer(asks(20))
    assert [each.text for each in found] == [f"voice@3 says {asked(at)}" for at in range(20)]
    assert sorted(gateway.asked()[before:]) == sorted(("voice@3", asked(at)) for at in range(10, 20))
