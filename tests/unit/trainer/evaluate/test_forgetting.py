from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from tests.unit.trainer.evaluate.conftest import KEY, Gateway
from tests.unit.trainer.evaluate.worlds import QUICK, seeded
from trainer.errors import EvaluationInvalid
from trainer.evaluate import verdict_text
from trainer.evaluate.arms import Arm, Prompt
from trainer.evaluate.endpoint_client import Endpoint
from trainer.evaluate.forgetting import (
    WORD_ORDER_SHARE,
    Budget,
    Forgetting,
    at_chance,
    compare_measurements,
    loss_state,
)
from trainer.evaluate.likelihood import HttpScorer, TokenLogprobs
from trainer.evaluate.suites.general import (
    MIN_ITEMS,
    ChatItem,
    ChoiceItem,
    SuiteItems,
    SuiteMeasurement,
    TextItem,
    general_suite,
    likeliest,
    measure,
    read_suite,
)

ORDER = 2.0
"""Nats per token that the base knows from the order of the words."""
DRAWS = 150


def suite(count: int = 200, texts: int = 12, chats: int = 0) -> SuiteItems:
    return SuiteItems(
        name="tiny",
        choices=tuple(
            ChoiceItem(
                kind="choice",
                id=f"c{at}",
                area=f"area {at % 2}",
                stem=f"Stem {at}",
                choices=("a", "b", "c", "d"),
                answer=0,
            )
            for at in range(count)
        ),
        chats=tuple(
            ChatItem(
                kind="chat",
                id=f"q{at}",
                area="chat",
                question=f"Question {at}?",
                choices=("a", "b", "c", "d"),
                answer=0,
            )
            for at in range(chats)
        ),
        texts=tuple(TextItem(kind="text", id=f"t{at}", area="news", text=f"Some text {at}.") for at in range(texts)),
    )


def measured(
    label: str, right: int, rise: float = 0.0, *, count: int = 200, texts: int = 12, chat: tuple[int, int] = (0, 0)
) -> SuiteMeasurement:
    """The first `right` of `count` items are right, and of those in a chat `chat`: so many, of so many."""
    random = seeded(5)
    nats = tuple(
        float(value) for value in random.uniform(2.5, 3.5, texts) + rise + random.normal(0, 0.01, texts) * (rise != 0)
    )
    return SuiteMeasurement(
        label=label,
        suite="tiny",
        right=(True,) * right + (False,) * (count - right),
        chat_right=(True,) * chat[0] + (False,) * (chat[1] - chat[0]),
        nats=nats,
        shuffled_nats=tuple(value + ORDER for value in nats),
    )


def compared(*measurements: SuiteMeasurement, items: SuiteItems | None = None) -> Forgetting:
    return compare_measurements(items or suite(), *measurements, Budget(), QUICK)


def states_of_draws(loss: float, differ: float, chat_loss: float = 0.0) -> list[str]:
    """The states of the shipped suite in DRAWS comparisons, with this true loss in plain text and in a chat."""
    items, random, states = general_suite(), seeded(17), []
    nats = (3.0,) * len(items.texts)
    shuffled = (3.0 + ORDER,) * len(items.texts)
    for _ in range(DRAWS):
        rows: list[list[tuple[bool, ...]]] = []
        for count, lost in ((len(items.choices), loss), (len(items.chats), chat_loss)):
            base = random.random(count) < 0.85
            flip = random.random(count)
            # a right item becomes wrong, and a wrong one right, so often that the means differ by the loss
            worse, better = (max(differ, lost) + lost) / 2 / 0.85, (max(differ, lost) - lost) / 2 / 0.15
            after = np.where(base, flip >= worse, flip < better)
            rows.append([tuple(map(bool, base)), tuple(map(bool, after))])
        before, after_all = (
            SuiteMeasurement(
                label="x", suite="general", right=rows[0][at], chat_right=rows[1][at], nats=nats, shuffled_nats=shuffled
            )
            for at in range(2)
        )
        states.append(compare_measurements(items, before, after_all, Budget(), QUICK).state)
    return states


def test_a_true_loss_of_eight_points_is_hardly_ever_kept() -> None:
    """The estimate alone kept it in 22% of cases on the 103 items that the suite once had."""
    states = states_of_draws(0.08, 0.10)
    assert states.count("kept") <= 0.025 * DRAWS
    assert states.count("broken") >= 0.9 * DRAWS
    assert states_of_draws(0.05, 0.10).count("kept") <= 0.06 * DRAWS


def test_an_adapter_that_lost_nothing_is_kept() -> None:
    assert states_of_draws(0.0, 0.07).count("kept") >= 0.9 * DRAWS


def test_a_loss_in_a_chat_alone_is_not_kept() -> None:
    assert states_of_draws(0.0, 0.05, chat_loss=0.20).count("kept") == 0


def test_the_general_suite_is_whole() -> None:
    found = general_suite()
    assert len(found.choices) >= 400
    assert len(found.chats) >= 100
    assert len(found.texts) >= 20
    assert {item.area for item in found.choices} == {"knowledge", "commonsense", "language", "arithmetic", "reading"}
    assert {item.area for item in found.chats} == {"chat questions", "chat instructions", "chat conversation"}
    assert len({item.area for item in found.texts}) >= 8
    for items in (found.choices, found.chats):
        assert all(len(item.choices) == 4 for item in items)
        places = [item.answer for item in items]
        assert all(places.count(place) >= len(places) / 6 for place in range(4))
    stems = [" ".join(item.stem.lower().split()) for item in found.choices]
    questions = [" ".join(item.question.lower().split()) for item in found.chats]
    assert len(set(stems + questions)) == len(stems) + len(questions)
    # the first 103 are those that verdicts of rule 2 and before were made with
    assert [item.id for item in found.choices][:103][::102] == ["knowledge-1", "language-29"]


def test_fewer_items_are_spread_over_all_areas() -> None:
    whole = general_suite()
    few = whole.limited(60)
    assert len(few.multiple_choice) == 60
    assert {item.area for item in few.multiple_choice} == {item.area for item in whole.multiple_choice}
    assert len(few.chats) / 60 == pytest.approx(len(whole.chats) / len(whole.multiple_choice), abs=0.02)
    assert few.texts == whole.texts
    assert len(whole.limited(MIN_ITEMS).chats) >= 2
    assert whole.limited(None) == whole.limited(10_000) == whole
    # and so few cannot show that a loss is within the budget, even if none was seen
    counts = {"count": len(few.choices), "texts": len(few.texts), "chat": (len(few.chats),) * 2}
    same = [measured(label, len(few.choices), **counts) for label in ("base", "tuned")]
    assert compared(*same, items=few).state == "open"


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"kind": "choice", "id": "1", "area": "a", "stem": "s", "choices": ["x", "y"], "answer": 2}',
        '{"kind": "choice", "id": "1", "area": "a", "stem": "s", "choices": ["x", "x"], "answer": 0}',
        '{"kind": "choice", "id": "1", "area": "a", "stem": "s", "choices": ["x", "xy"], "answer": 0}',
        '{"kind": "chat", "id": "1", "area": "a", "stem": "s", "choices": ["x", "y"], "answer": 0}',
        '{"kind": "text", "id": "t", "area": "a", "text": ""}',
        '{"kind": "tune", "id": "t"}',
    ],
)
def test_a_suite_with_a_wrong_line_is_refused(line: str) -> None:
    with pytest.raises(EvaluationInvalid, match="line 1"):
        read_suite("own", line)


def test_a_suite_needs_both_kinds_and_unique_ids() -> None:
    text = json.dumps({"kind": "text", "id": "t", "area": "a", "text": "x y"})
    with pytest.raises(EvaluationInvalid, match="must be unique"):
        read_suite("own", f"{text}\n{text}\n")
    with pytest.raises(EvaluationInvalid, match="needs"):
        read_suite("own", f"{text}\n")


def test_the_likeliest_choice_is_that_a_byte() -> None:
    choices = ("ab", "abcdefgh")
    short = TokenLogprobs(tokens=(1, 2, 3), logprobs=(-9.0, -9.0, -1.0))
    long = TokenLogprobs(tokens=(1, 2, 4, 5), logprobs=(-9.0, -9.0, -1.0, -1.0))
    assert likeliest(choices, (short, long)) == 1
    longer = TokenLogprobs(tokens=(1, 2, 4, 5), logprobs=(-9.0, -9.0, -2.0, -2.1))
    assert likeliest(choices, (short, longer)) == 0


OWN = [
    {"kind": "choice", "id": "1", "area": "a", "stem": "The sky is", "choices": ["blue", "mice"], "answer": 0},
    {"kind": "choice", "id": "2", "area": "a", "stem": "Grass is", "choices": ["loud", "tall"], "answer": 1},
    {"kind": "chat", "id": "5", "area": "c", "question": "Is ice cold?", "choices": ["No", "Yes"], "answer": 1},
    {"kind": "text", "id": "3", "area": "b", "text": "One two."},
    {"kind": "text", "id": "4", "area": "b", "text": "One three four five six."},
]


async def test_an_arm_is_measured_through_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    own = read_suite("own", "\n".join(map(json.dumps, OWN)))
    gateway.likely = {"voice@3": {"blue", "loud", "two.", "Yes"}}
    scorer = HttpScorer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "scores.jsonl")
    arm, progress = Arm(label="tuned", model="voice@3", prompt=Prompt(system="Be brief.")), list[tuple[int, int]]()
    found = await measure(arm, own, scorer, lambda *done: progress.append(done), shuffled=True)
    assert (found.right, found.chat_right) == ((True, False), (True,))
    assert found.nats == pytest.approx((0.1, 5.0))
    assert len(found.shuffled_nats) == 2
    assert progress[-1] == (3, 3)
    # one request for all choices, one for all texts, and a chat for each reply, as a caller would send it
    paths = [path for path, _ in gateway.requests]
    assert sorted(paths) == ["/v1/chat/completions"] * 2 + ["/v1/completions"] * 2
    (chat, _) = [body for path, body in gateway.requests if path == "/v1/chat/completions"]
    assert [turn["content"] for turn in chat["messages"]] == ["Be brief.", "Is ice cold?", "No"]
    # what is stored is not asked again
    again = await measure(arm, own, scorer, shuffled=True)
    assert (again, len(gateway.requests)) == (found, 4)


async def test_an_adapter_that_lost_its_way_in_chats_alone_is_broken(gateway: Gateway, tmp_path: Path) -> None:
    """It completes texts as the base does, and in a chat one reply is as good as another to it."""
    items = general_suite().limited(100)
    right = {word for item in items.multiple_choice for word in item.choices[item.answer].split()}
    gateway.likely = {"smol": right, "voice@3": right}
    gateway.likely_in_chats = {"voice@3": set()}
    scorer = HttpScorer(Endpoint(gateway.url, SecretStr(KEY)), tmp_path / "scores.jsonl")
    base = await measure(Arm(label="base", model="smol"), items, scorer, shuffled=True)
    candidate = await measure(Arm(label="tuned", model="voice@3"), items, scorer)
    found = compare_measurements(items, base, candidate, Budget(), QUICK)
    assert found.chat is not None
    assert (found.accuracy.state, found.chat.state, found.state) == ("kept", "broken", "broken")
    sentence = verdict_text.forgetting(found)
    assert f"General questions in a chat: {found.chat.base:.0%} right before" in sentence
    assert "more than the budget allows" in sentence


def test_the_words_are_shuffled_the_same_way_every_time() -> None:
    for item in general_suite().texts:
        assert item.shuffled == item.model_copy().shuffled != item.text
        assert sorted(item.shuffled.split()) == sorted(item.text.split())


def test_nothing_lost_is_kept_and_what_changed_is_named() -> None:
    found = compared(measured("base", 180), measured("tuned", 178))
    assert (found.state, found.chat) == ("kept", None)
    assert found.accuracy.loss == pytest.approx(2 / 200)
    assert found.accuracy.low < found.accuracy.loss < found.accuracy.high <= 0.05
    assert (found.lost, found.won) == (("c178", "c179"), ())
    assert sum(area.base for area in found.areas) == 180
    assert (found.perplexity.loss, found.perplexity.low, found.perplexity.high) == (0, 0, 0)


def test_a_loss_within_the_budget_is_open_where_the_interval_is_not() -> None:
    found = compared(measured("base", 180), measured("tuned", 172))
    assert 0 < found.accuracy.low < found.accuracy.loss < 0.05 < found.accuracy.high
    assert (found.accuracy.state, found.state) == ("open", "open")
    assert "within the budget, but the interval does not rule out a larger loss" in verdict_text.forgetting(found)


def test_a_real_loss_above_the_budget_breaks_it() -> None:
    assert compared(measured("base", 180), measured("tuned", 150)).accuracy.state == "broken"


@pytest.mark.parametrize(("loss", "low", "high", "state"), [
    (0.01, -0.01, 0.05, "kept"), (0.01, -0.01, 0.051, "open"), (-0.02, -0.06, 0.02, "kept"),
    (0.06, 0.01, 0.11, "broken"), (0.06, -0.01, 0.13, "open"), (0.04, 0.02, 0.06, "open"),
])  # fmt: skip
def test_the_interval_decides(loss: float, low: float, high: float, state: str) -> None:
    assert loss_state(loss, low, high, 0.05) == state


def test_the_chat_part_has_its_own_budget_and_interval() -> None:
    items = suite(chats=100)
    base = measured("base", 180, chat=(90, 100))
    kept = compared(base, measured("tuned", 180, chat=(87, 100)), items=items)
    assert kept.chat is not None
    assert (kept.chat.state, kept.chat.items, kept.state) == ("kept", 100, "kept")
    assert compared(base, measured("tuned", 180, chat=(83, 100)), items=items).state == "open"
    assert compared(base, measured("tuned", 180, chat=(75, 100)), items=items).state == "broken"
    silent = compared(measured("base", 180, chat=(25, 100)), measured("tuned", 180, chat=(10, 100)), items=items)
    assert silent.chat is not None
    assert (silent.chat.state, silent.state) == ("silent", "kept")
    assert "they cannot show a loss" in verdict_text.forgetting(silent)


def test_the_perplexity_is_held_against_what_the_order_of_the_words_tells_the_base() -> None:
    limit = WORD_ORDER_SHARE * ORDER
    base = measured("base", 180)
    states = [compared(base, measured("tuned", 180, rise=rise)).perplexity.state for rise in (-0.2, 0.9, 0.999, 1.1, 4)]
    assert states == ["kept", "kept", "open", "broken", "broken"]
    found = compared(base, measured("tuned", 180, rise=1.1))
    assert found.perplexity.budget == pytest.approx(math.expm1(limit))
    assert found.shuffled_perplexity == pytest.approx(found.perplexity.base * math.exp(ORDER))
    assert found.state == "broken"


def test_an_operators_own_budget_for_the_perplexity_needs_no_shuffled_texts() -> None:
    base = measured("base", 180).model_copy(update={"shuffled_nats": ()})
    budget = Budget(perplexity=1.0)
    for rise, state in ((0.6, "kept"), (0.9, "broken")):
        found = compare_measurements(suite(), base, measured("tuned", 180, rise=rise), budget, QUICK)
        assert (found.perplexity.state, found.perplexity.budget, found.shuffled_perplexity) == (state, 1.0, None)
    with pytest.raises(EvaluationInvalid, match="shuffled"):
        compared(base, base)


def test_a_loss_above_the_budget_that_may_be_chance_is_open() -> None:
    base, tuned = measured("base", 18, count=20), measured("tuned", 16, count=20)
    found = compared(base, tuned, items=suite(20))
    assert found.accuracy.loss > 0.05
    assert found.accuracy.low < 0
    assert (found.accuracy.state, found.state) == ("open", "open")


def test_where_the_base_is_at_chance_the_suite_is_silent() -> None:
    found = compared(measured("base", 51), measured("tuned", 0))
    assert (found.accuracy.state, found.state) == ("silent", "kept")
    forgot = compared(measured("base", 51), measured("tuned", 0, rise=1.5))
    assert forgot.state == "broken"
    assert [area.at_chance for area in found.areas] == [True, True]


def test_where_nothing_can_show_a_loss_nothing_is_kept() -> None:
    base = measured("base", 51)
    base = base.model_copy(update={"shuffled_nats": base.nats})
    found = compared(base, base)
    assert (found.accuracy.state, found.perplexity.state, found.state) == ("silent", "silent", "open")
    assert verdict_text.forgetting(found).count("cannot show a loss") == 2


def test_chance_is_what_an_exact_test_calls_so() -> None:
    items = suite(40).choices
    assert at_chance(items, [True] * 15 + [False] * 25, QUICK)
    assert not at_chance(items, [True] * 20 + [False] * 20, QUICK)


def test_a_broken_model_has_a_perplexity_that_is_a_number() -> None:
    found = compared(measured("base", 180), measured("tuned", 0, rise=9000.0))
    assert math.isfinite(found.perplexity.candidate)
    assert found.state == "broken"
    assert json.loads(found.model_dump_json())["perplexity"]["state"] == "broken"


def test_measurements_of_another_suite_are_refused() -> None:
    with pytest.raises(EvaluationInvalid):
        compared(measured("base", 10, count=20), measured("tuned", 70))


def test_a_record_of_before_there_were_chats_is_still_read() -> None:
    record = json.loads(compared(measured("base", 180), measured("tuned", 178)).model_dump_json())
    for name in ("chat", "shuffled_perplexity"):
        del record[name]
    old = Forgetting.model_validate(record)
    assert (old.chat, old.state) == (None, "kept")
    assert "in a chat" not in verdict_text.forgetting(old)
