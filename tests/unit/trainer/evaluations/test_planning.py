"""What is fixed before anything is asked: whether the base is told the answers, by what there is room for."""

from __future__ import annotations

from typing import Any

from tests.unit.trainer.evaluations.conftest import MakeFolder
from tests.unit.trainer.evaluations.world import INTENTS
from trainer.evaluate.arms import TEMPLATE_TOKENS, Question, Turn, listed
from trainer.evaluations.planning import Plan, Serving, make_plan
from trainer.evaluations.spec import EvaluationJob
from trainer.jobs import spec
from trainer.jobs.primary import LEAST_TOKENS

LIST = len(listed(sorted(INTENTS)).split())
SYSTEM = "You speak for the shop"


def held_out() -> tuple[Question, ...]:
    """36 short questions, and one of three turns with 50 words."""
    found = [("user", f"question {at}?") for at in range(36)]
    long = (Turn(role="user", content="w " * 20), Turn(role="assistant", content="w " * 10))
    return (
        *(
            Question(id=str(at), turns=(Turn(role=role, content=text),), reference=INTENTS[at % 3])
            for at, (role, text) in enumerate(found)
        ),
        Question(id="long", turns=(*long, Turn(role="user", content="w " * 20)), reference=INTENTS[0]),
    )


def planned(make_folder: MakeFolder, context_tokens: int, body: dict[str, Any] | None = None) -> Plan:
    folder = make_folder(body, context={"system_prompt": SYSTEM}, context_tokens=context_tokens)
    job = EvaluationJob.model_validate_json((folder / spec.SPEC).read_bytes())
    (folder / spec.SPEC).unlink()
    (folder / spec.KEY).unlink()
    folder.rmdir()
    found = held_out()
    return make_plan(job, found, found, (), serving=Serving(), count=lambda text: len(text.split()))


def test_the_base_is_told_the_answers_where_the_longest_question_has_room_beside_them(make_folder: MakeFolder) -> None:
    enough = LIST + 50 + 3 * TEMPLATE_TOKENS + len(SYSTEM.split()) + LEAST_TOKENS + TEMPLATE_TOKENS
    told = planned(make_folder, enough)
    assert [arm.prompt.answers for arm in told.evaluation.arms] == [(), (), tuple(sorted(INTENTS))]
    assert told.evaluation.bases == ("base", "base told the answers")
    untold = planned(make_folder, enough - 1)
    assert [arm.prompt.answers for arm in untold.evaluation.arms] == [(), ()]
    assert untold.evaluation.bases == ("base",)
    assert untold.why == (
        f"{told.why}; a list of the possible answers would leave no room for the longest question, so the base is not"
        " told them"
    )


def test_arms_that_a_client_names_are_told_what_it_says(make_folder: MakeFolder) -> None:
    arm = {"label": "base", "model": "tiny", "prompt": {"answers": list(INTENTS)}}
    plan = planned(make_folder, 40, {"arms": [arm]})
    assert [arm.prompt.answers for arm in plan.evaluation.arms] == [INTENTS]
    assert "leave no room" not in plan.why


def test_no_answer_is_asked_for_that_is_longer_than_the_context(make_folder: MakeFolder) -> None:
    assert planned(make_folder, 12).evaluation.max_tokens == 12
    assert planned(make_folder, 2048).evaluation.max_tokens == LEAST_TOKENS
    assert planned(make_folder, 2048, {"model": "voice@3", "max_tokens": 99}).evaluation.max_tokens == 99
