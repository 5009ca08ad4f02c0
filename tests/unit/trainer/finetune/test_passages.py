"""Training prompts with retrieved passages: which requests the hook gets, and what becomes of its answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import pytest

from trainer.data.format import Example, Message
from trainer.errors import DataInvalid, GatewayRefused
from trainer.finetune.passages import TrainingPassages, passages_for
from trainer.finetune.spec import PASSAGES, TrainingPlan
from trainer.runs.directory import RunDirectory
from trainer.runs.gateway import Gateway
from trainer.tune.recipe import Recipe

SYSTEM = Message("system", "Be salty.", trained=False)
HELLO = Message("user", "Where is my parcel?", trained=False)
AYE = Message("assistant", "Aye, at sea.", trained=True)
GROUNDING: dict[str, Any] = {"vector_store_ids": ["vs_shop"], "max_num_results": 2, "template": None}
REQUESTED = {"vector_store_ids": ["vs_shop"], "max_num_results": 2, "on_failure": "fail_closed"}


class Hook:
    """Gives every question one passage, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[dict[str, str]], dict[str, Any]]] = []

    def rendered(self, model: str, messages: list[dict[str, str]], grounding: dict[str, Any]) -> list[dict[str, Any]]:
        self.requests.append((model, messages, grounding))
        return [*messages[:-1], {"role": "user", "content": f"[1] by sea\n{messages[-1]['content']}"}]


@pytest.fixture
def hook() -> Hook:
    return Hook()


def passages(path: Path, hook: Hook, grounding: dict[str, Any] = GROUNDING) -> TrainingPassages:
    return TrainingPassages(path / PASSAGES, cast(Gateway, hook), "base", grounding)


def example(*messages: Message, group: str | None = None, **filters: str) -> Example:
    return Example(3, messages, group=group, filters=filters)


def test_the_last_question_gets_its_passages_as_in_serving(tmp_path: Path, hook: Hook) -> None:
    messages = (SYSTEM, HELLO, AYE)
    rendered = passages(tmp_path, hook)(example(HELLO, AYE), messages)
    assert rendered == (SYSTEM, Message("user", "[1] by sea\nWhere is my parcel?", trained=False), AYE)
    sent = [{"role": "system", "content": "Be salty."}, {"role": "user", "content": "Where is my parcel?"}]
    assert hook.requests == [("base", sent, REQUESTED)]


def test_of_a_conversation_only_the_last_answer_is_trained(tmp_path: Path, hook: Hook) -> None:
    messages = (HELLO, AYE, Message("user", "And when?", trained=False), AYE)
    rendered = passages(tmp_path, hook)(example(*messages), messages)
    assert [(message.content, message.trained) for message in rendered] == [
        ("Where is my parcel?", False),
        ("Aye, at sea.", False),
        ("[1] by sea\nAnd when?", False),
        ("Aye, at sea.", True),
    ]


def test_an_example_is_not_shown_its_own_answer(tmp_path: Path, hook: Hook) -> None:
    own = {"type": "ne", "key": "group", "value": "ticket 7"}
    passages(tmp_path, hook)(example(HELLO, AYE, group="ticket 7"), (HELLO, AYE))
    assert hook.requests[-1][2] == REQUESTED | {"filters": own}
    given = {"type": "eq", "key": "region", "value": "eu"}
    filtered = passages(tmp_path / "other", hook, GROUNDING | {"filters": given})
    (tmp_path / "other").mkdir()
    filtered(example(HELLO, AYE, group="ticket 7"), (HELLO, AYE))
    assert hook.requests[-1][2]["filters"] == {"type": "and", "filters": [given, own]}


def test_a_resumed_job_trains_on_the_same_prompts(tmp_path: Path, hook: Hook) -> None:
    first = passages(tmp_path, hook)(example(HELLO, AYE), (HELLO, AYE))
    with (tmp_path / PASSAGES).open("a") as file:
        file.write('{"key": "cut off by a kill')
    resumed = passages(tmp_path, hook)
    assert resumed(example(HELLO, AYE), (HELLO, AYE)) == first
    assert len(hook.requests) == 1
    resumed(example(HELLO, AYE, group="another"), (HELLO, AYE))
    assert len(hook.requests) == 2


@pytest.mark.parametrize(
    "messages",
    [
        (Message("user", "a", trained=False), AYE, AYE),
        (AYE,),
        (HELLO, Message("assistant", "", trained=False), Message("tool", "x", trained=False), AYE),
    ],
)
def test_what_ends_otherwise_is_refused_with_its_line(
    tmp_path: Path, hook: Hook, messages: tuple[Message, ...]
) -> None:
    with pytest.raises(DataInvalid) as refused:
        passages(tmp_path, hook)(example(*messages), messages)
    assert refused.value.problems[0].line == 3
    assert not hook.requests


def test_examples_as_turns_stand_before_the_conversation_and_are_not_trained(tmp_path: Path) -> None:
    class Turns(Hook):
        def rendered(self, *request: Any) -> list[dict[str, Any]]:
            system, *rest = super().rendered(*request)
            question = request[1][-1]
            shown = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
            return [system, *shown, *rest[:-1], question]

    hook = Turns()
    grounding = {"vector_store_ids": ["vs_examples"], "insert_as": "turns"}
    for _ in range(2):  # the second reads what the first has kept
        rendered = passages(tmp_path, hook, grounding)(example(HELLO, AYE), (SYSTEM, HELLO, AYE))
        assert rendered == (
            SYSTEM,
            Message("user", "Hi", trained=False),
            Message("assistant", "Ahoy", trained=False),
            HELLO,
            AYE,
        )
    assert len(hook.requests) == 1
    assert hook.requests[0][2] == grounding | {"on_failure": "fail_closed"}


def test_an_example_is_shown_what_its_own_customer_would_be_shown(tmp_path: Path, hook: Hook) -> None:
    fenced = GROUNDING | {"required_filters": ["customer"]}
    own = {"type": "eq", "key": "customer", "value": "c-1"}
    passages(tmp_path, hook, fenced)(example(HELLO, AYE, customer="c-1"), (HELLO, AYE))
    assert hook.requests[-1][2]["filters"] == {"type": "and", "filters": [own]}
    other = {"type": "ne", "key": "group", "value": "ticket 7"}
    region = {"type": "eq", "key": "region", "value": "eu"}
    rendering = passages(tmp_path, hook, fenced | {"filters": region})
    rendering(example(HELLO, AYE, group="ticket 7", customer="c-2"), (HELLO, AYE))
    theirs = {"type": "and", "filters": [{**own, "value": "c-2"}, region]}
    assert hook.requests[-1][2]["filters"] == {"type": "and", "filters": [theirs, other]}
    assert len(hook.requests) == 2, "the same words of two customers are two prompts"
    rendering(example(HELLO, AYE, group="ticket 7", customer="c-2"), (HELLO, AYE))
    assert len(hook.requests) == 2


def test_an_example_without_a_value_of_a_required_filter_is_named(tmp_path: Path, hook: Hook) -> None:
    with pytest.raises(DataInvalid) as refused:
        passages(tmp_path, hook, GROUNDING | {"required_filters": ["customer"]})(example(HELLO, AYE), (HELLO, AYE))
    [problem] = refused.value.problems
    assert problem.line == 3
    assert '`customer`: add "filters": {"customer": …} to the line' in problem.reason
    assert not hook.requests


def test_a_group_that_is_required_and_kept_out_is_refused(tmp_path: Path, hook: Hook) -> None:
    rendering = passages(tmp_path, hook, GROUNDING | {"required_filters": ["group"]})
    with pytest.raises(DataInvalid) as refused:
        rendering(Example(3, (HELLO, AYE), group="ticket 7", filters={"group": "ticket 7"}), (HELLO, AYE))
    [problem] = refused.value.problems
    assert problem.line == 3
    assert "has a `group`, and the version requires a filter on `group`" in problem.reason
    assert not hook.requests
    rendering(Example(3, (HELLO, AYE), filters={"group": "ticket 7"}), (HELLO, AYE))
    assert len(hook.requests) == 1, "without the field nothing is kept out"


def test_prompts_that_an_earlier_release_kept_are_trained_on_as_they_are(tmp_path: Path, hook: Hook) -> None:
    sent = [{"role": "system", "content": "Be salty."}, {"role": "user", "content": "Where is my parcel?"}]
    key = hashlib.sha256(json.dumps([None, sent], ensure_ascii=False).encode()).hexdigest()
    (tmp_path / PASSAGES).write_text(json.dumps({"key": key, "question": "[1] by land\nWhere is my parcel?"}) + "\n")
    rendered = passages(tmp_path, hook)(example(HELLO, AYE), (SYSTEM, HELLO, AYE))
    assert rendered == (SYSTEM, Message("user", "[1] by land\nWhere is my parcel?", trained=False), AYE)
    assert not hook.requests


def test_a_hook_that_refuses_stops_the_job(tmp_path: Path) -> None:
    class Refusing(Hook):
        def rendered(self, *_: Any) -> list[dict[str, Any]]:
            raise GatewayRefused(404, "vector_store_not_found", "no such store")

    with pytest.raises(GatewayRefused):
        passages(tmp_path, Refusing())(example(HELLO, AYE), (HELLO, AYE))
    assert not (tmp_path / PASSAGES).exists()


@pytest.mark.parametrize(("with_passages", "given"), [(True, True), (False, False)])
def test_a_plan_of_an_earlier_release_goes_on_without_passages(
    tmp_path: Path, hook: Hook, with_passages: bool, given: bool
) -> None:
    recipe = Recipe(rank=4, epochs=1, batch_size=4, max_length=64)
    plan = TrainingPlan(
        recipe=recipe,
        chosen={},
        system_prompt=None,
        grounding=GROUNDING,
        trained_with_passages=with_passages,
        tokens_an_epoch=9,
    )
    with RunDirectory(tmp_path) as directory:
        found = passages_for(plan, GROUNDING, "base", directory, cast(Gateway, hook))
        assert (found is not None) is given
        assert passages_for(None, None, "base", directory, cast(Gateway, hook)) is None
        assert passages_for(None, GROUNDING, "base", directory, cast(Gateway, hook)) is not None
