"""What is fixed before anything is asked: whether the base is told the answers, by what there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.trainer.evaluate.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluate.evaluations.evaluation_gateway import INTENTS
from trainer.errors import EvaluationInvalid
from trainer.evaluate.arms import (
    ANSWER_FORM_TOKENS,
    BARE_BASE_NOTE,
    GROUNDED_NOTE,
    NO_ROOM_FOR_ANSWERS,
    TEMPLATE_TOKENS,
    THINKING_TOKENS,
    ChatMessage,
    Question,
    answer_list,
)
from trainer.evaluate.base_prompts import NO_TRAINING_DATA
from trainer.evaluate.evaluations.planning import EvaluationPlan, LiveState, make_plan
from trainer.evaluate.evaluations.promotion import LivePointer
from trainer.evaluate.evaluations.spec import EvaluationJob
from trainer.runs import protocol

SHORT = max(len(intent.split()) for intent in INTENTS) + ANSWER_FORM_TOKENS
LIST = len(answer_list(sorted(INTENTS)).split())
SYSTEM = "You speak for the shop"


def held_out() -> tuple[Question, ...]:
    """36 short questions, and one of three turns with 50 words."""
    found = [("user", f"question {at}?") for at in range(36)]
    long = (ChatMessage(role="user", content="w " * 20), ChatMessage(role="assistant", content="w " * 10))
    return (
        *(
            Question(id=str(at), turns=(ChatMessage(role=role, content=text),), reference=INTENTS[at % 3])
            for at, (role, text) in enumerate(found)
        ),
        Question(id="long", turns=(*long, ChatMessage(role="user", content="w " * 20)), reference=INTENTS[0]),
    )


def planned(
    make_folder: MakeFolder,
    context_tokens: int,
    body: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    live_state: LiveState | None = None,
    questions: Sequence[Question] | None = None,
    **more: Any,
) -> EvaluationPlan:
    prompt = {"system_prompt": SYSTEM}
    folder = make_folder(body, context=prompt | (context or {}), context_tokens=context_tokens, **more)
    job = EvaluationJob.model_validate_json((folder / protocol.SPEC).read_bytes())
    (folder / protocol.SPEC).unlink()
    (folder / protocol.KEY).unlink()
    folder.rmdir()
    found = questions or held_out()
    count = lambda text: len(text.split())  # noqa: E731
    return make_plan(job, found, found, (), live_state=live_state or LiveState(), count=count)[0]


def test_the_base_is_told_the_answers_where_the_longest_question_has_room_beside_them(make_folder: MakeFolder) -> None:
    enough = LIST + 50 + 3 * TEMPLATE_TOKENS + len(SYSTEM.split()) + SHORT + TEMPLATE_TOKENS
    told = planned(make_folder, enough)
    assert [arm.prompt.answers for arm in told.evaluation.arms] == [(), (), tuple(sorted(INTENTS))]
    assert told.evaluation.bases == ("base", "base told the answers")
    untold = planned(make_folder, enough - 1)
    assert [arm.prompt.answers for arm in untold.evaluation.arms] == [(), ()]
    assert untold.evaluation.bases == ("base",)
    assert untold.why == (
        f"{told.why}; the list of possible answers does not fit into the context with the longest question, so the "
        "base is not given it"
    )


NEW = {"label": "new", "model": "voice@3"}
WEAK = {"label": "base", "model": "tiny"}
BEST = {"label": "mine", "model": "tiny", "prompt": {"system": SYSTEM}}
TOLD = {"label": "listed", "model": "tiny", "prompt": {"system": SYSTEM, "answers": sorted(INTENTS)}}


def compared(*arms: dict[str, Any], bases: tuple[str, ...] = ("base",), **more: Any) -> dict[str, Any]:
    return {"arms": [NEW, *arms], "candidate": "new", "bases": list(bases)} | more


def test_whatever_a_client_compares_a_verdict_on_a_version_is_against_the_base_at_its_best(
    make_folder: MakeFolder,
) -> None:
    plan = planned(make_folder, 2048, compared(WEAK)).evaluation
    assert [(arm.label, arm.prompt.system, bool(arm.prompt.answers)) for arm in plan.arms[2:]] == [
        ("base (2)", SYSTEM, False),
        ("base told the answers", SYSTEM, True),
    ]
    assert plan.bases == ("base (2)", "base", "base told the answers"), "suites are measured on the plain base"
    # what is there already is not asked twice, and counts although the client does not name it
    plan = planned(make_folder, 2048, compared(BEST, TOLD, bases=("listed",))).evaluation
    assert [arm.label for arm in plan.arms] == ["new", "mine", "listed"]
    assert plan.bases == ("mine", "listed")


@pytest.mark.parametrize(
    ("more", "context"),
    [({"kind": "revalidation"}, {}), ({}, {"records": False}), ({}, {"candidate": None})],
    ids=["judged again", "not written down", "no version as it serves"],
)
def test_elsewhere_arms_are_what_a_client_says(
    more: dict[str, Any], context: dict[str, Any], make_folder: MakeFolder
) -> None:
    told = {"label": "base", "model": "tiny", "prompt": {"answers": list(INTENTS)}}
    plan = planned(make_folder, 40, compared(told, **more), context)
    assert [(arm.label, arm.prompt.answers) for arm in plan.evaluation.arms] == [("new", ()), ("base", INTENTS)]
    assert NO_ROOM_FOR_ANSWERS not in plan.why


def test_prompts_that_a_client_chose_are_told_from_the_base_at_its_best(make_folder: MakeFolder) -> None:
    kind = {"label": "kind", "model": "tiny", "prompt": {"system": "Be kind"}}
    grounded = {"label": "grounded", "model": "tiny", "grounding": {"vector_store_ids": ["vs_1"]}}
    bare = {"label": "bare", "model": "tiny", "grounding": False}
    outside = {"label": "gpt", "model": "gpt", "endpoint": "openai", "prompt": {"system": "Be kind"}}
    assert planned(make_folder, 2048).evaluation.prompted == ()
    plan = planned(make_folder, 2048, compared(BEST, TOLD, kind, grounded, bare, outside, bases=("kind",))).evaluation
    assert plan.prompted == ("kind", "grounded")
    assert planned(make_folder, 2048, compared(BEST, bases=("mine",), kind="revalidation")).evaluation.prompted == ()
    arms = {"arms": [WEAK, kind, BEST], "suites": []}
    alone = {"candidate": None, "system_prompt": None, "records": False}
    assert planned(make_folder, 2048, arms, alone).evaluation.prompted == ("kind", "mine")


def test_what_serves_is_compared_with_under_a_label_that_is_free(make_folder: MakeFolder) -> None:
    other = {"label": "live", "model": "voice@1"}
    body = compared(WEAK, other, promote="auto")
    plan = planned(make_folder, 2048, body, live_state=LiveState(LivePointer(version=2), "voice@2")).evaluation
    assert plan.live == "live (2)"
    assert plan.arm("live (2)").model == "voice@2"
    there = planned(make_folder, 2048, body, live_state=LiveState(LivePointer(version=1), "voice@1")).evaluation
    assert (there.live, len(there.arms)) == ("live", len(plan.arms) - 1)
    # the version under another prompt is not what serves
    dressed = compared(WEAK, other | {"prompt": {"system": "Be kind"}}, promote="auto")
    kind = planned(make_folder, 2048, dressed, live_state=LiveState(LivePointer(version=1), "voice@1")).evaluation
    assert kind.live == "live (2)"


def test_no_answer_is_asked_for_that_is_longer_than_the_context(make_folder: MakeFolder) -> None:
    assert planned(make_folder, SHORT - 1).evaluation.max_tokens == SHORT - 1
    assert planned(make_folder, 2048).evaluation.max_tokens == SHORT
    assert planned(make_folder, 2048, thinks=True).evaluation.max_tokens == SHORT + THINKING_TOKENS
    assert planned(make_folder, 2048, {"model": "voice@3", "max_tokens": 99}).evaluation.max_tokens == 99


def test_a_grounded_version_is_judged_against_a_grounded_base(make_folder: MakeFolder) -> None:
    grounding = {"vector_store_ids": ["vs_shop"], "template": None}
    plan = planned(make_folder, 2048, context={"grounding": grounding})
    candidate, *bases = plan.evaluation.arms
    assert candidate.grounding is None  # its own
    assert [arm.grounding for arm in bases] == [{"vector_store_ids": ["vs_shop"]}] * 2
    assert plan.evaluation.bases == ("base with passages", "base with passages told the answers")
    assert plan.notes == (GROUNDED_NOTE, NO_TRAINING_DATA)
    # a client's own base without passages is not the base at its best
    named = planned(make_folder, 2048, compared(BEST, TOLD, bases=("mine",)), {"grounding": grounding}).evaluation
    assert [arm.label for arm in named.arms[3:]] == ["base with passages", "base with passages told the answers"]
    assert planned(make_folder, 2048).notes == (NO_TRAINING_DATA,)


def test_a_version_without_weights_is_compared_with_the_bare_base_and_with_what_is_live(
    make_folder: MakeFolder,
) -> None:
    shown = [{"user": "word " * 40, "assistant": "word " * 40}]
    context = {"has_weights": False, "examples": shown, "grounding": {"vector_store_ids": ["vs_1"]}}
    live = LiveState(LivePointer(version=1), "voice@1")
    plan = planned(make_folder, 4096, context=context, live_state=live)
    candidate, base, other = plan.evaluation.arms
    assert (candidate.model, candidate.prompt.is_plain, candidate.grounding) == ("voice@3", True, None)
    assert (base.label, base.prompt.system, base.prompt.is_plain, base.grounding) == ("base", None, True, None)
    assert (other.model, plan.evaluation.live) == ("voice@1", "live")
    assert plan.evaluation.bases == ("base",)
    assert BARE_BASE_NOTE in plan.notes
    assert GROUNDED_NOTE not in plan.notes


def test_weights_that_follow_a_prompt_are_judged_against_it_as_what_is_live(make_folder: MakeFolder) -> None:
    plan = planned(make_folder, 4096, live_state=LiveState(LivePointer(version=1), "voice@1"))
    live = next(arm for arm in plan.evaluation.arms if arm.label == "live")
    assert (live.model, live.prompt.is_plain, live.prompt.system) == ("voice@1", True, None)
    assert len(plan.evaluation.bases) > 1
    assert BARE_BASE_NOTE not in plan.notes


def test_a_candidate_that_demands_a_filter_has_one_for_every_question(make_folder: MakeFolder) -> None:
    demanding = {"grounding": {"vector_store_ids": ["vs_1"], "required_filters": ["customer"]}}
    with pytest.raises(EvaluationInvalid) as refused:
        planned(make_folder, 4096, context=demanding)
    assert "requires a filter on `customer`" in refused.value.message
    assert "37 of 37 held-out examples give no value (lines 0, 1, 2, 3, 4 …)" in refused.value.message
    with_values = [question.model_copy(update={"filters": {"customer": "c-1"}}) for question in held_out()]
    found = planned(make_folder, 4096, context=demanding, questions=with_values)
    assert found.evaluation.required_filters == ("customer",)
    base = next(arm for arm in found.evaluation.arms if arm.label == found.evaluation.bases[0])
    assert isinstance(base.grounding, dict)
    assert base.grounding["required_filters"] == ["customer"]


def test_a_group_that_the_candidate_requires_and_the_examples_keep_out_is_refused(make_folder: MakeFolder) -> None:
    demanding = {"grounding": {"vector_store_ids": ["vs_1"], "required_filters": ["group"]}}
    both = [question.model_copy(update={"group": "g", "filters": {"group": "g"}}) for question in held_out()]
    with pytest.raises(EvaluationInvalid) as refused:
        planned(make_folder, 4096, context=demanding, questions=both)
    assert "37 of 37 held-out examples have a `group` (lines 0, 1, 2, 3, 4 …)" in refused.value.message
    assert "require an attribute of another name, such as `customer`" in refused.value.message
    for_one = [question.model_copy(update={"filters": {"group": "g"}}) for question in held_out()]
    assert planned(make_folder, 4096, context=demanding, questions=for_one).evaluation.required_filters == ("group",)


def test_a_question_is_not_shown_its_own_answer_and_the_verdict_says_where_that_is_not_sure(
    make_folder: MakeFolder,
) -> None:
    grounding = {"vector_store_ids": ["vs_1"], "insert_as": "turns"}
    context = {"grounding": grounding, "groundings": {"voice@3": grounding}}
    grouped = [question.model_copy(update={"group": f"g-{at}"}) for at, question in enumerate(held_out())]
    plan = planned(make_folder, 4096, context=context, questions=grouped)
    assert plan.evaluation.groundings == {"voice@3": grounding}
    told = "held-out examples have no `group`"
    assert not any(told in note for note in plan.notes)
    some = [*grouped[:-2], *held_out()[-2:]]
    assert any(f"2 of 37 {told}" in note for note in planned(make_folder, 4096, context=context, questions=some).notes)
    quoting = {"grounding": {"vector_store_ids": ["vs_1"]}}
    assert not any(told in note for note in planned(make_folder, 4096, context=quoting).notes)
