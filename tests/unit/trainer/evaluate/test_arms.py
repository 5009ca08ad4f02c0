from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainer.data.format import parse_chat
from trainer.evaluate.arms import (
    ANSWER_LIST_INTRO,
    Arm,
    ChatMessage,
    Prompt,
    Question,
    base_at_its_best,
    questions,
    template_switches,
    thinks,
)

ASKED = Question(id="1", turns=(ChatMessage(role="user", content="Where is my card?"),), reference="card_arrival")
WITH_SYSTEM = Question(
    id="2",
    turns=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hm?")),
    reference="x",
)


def test_an_example_is_its_turns_and_the_last_answer() -> None:
    line = (
        '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},'
        ' {"role": "assistant", "content": "b", "weight": 0}, {"role": "user", "content": "c"},'
        ' {"role": "assistant", "content": "d"}]}\n'
    )
    (question,) = questions(parse_chat(line.encode()))
    assert question.id == "1"
    assert [turn.role for turn in question.turns] == ["system", "user", "assistant", "user"]
    assert (question.last_message, question.reference) == ("c", "d")


def test_a_plain_prompt_is_the_question_as_it_is() -> None:
    assert Prompt().messages(ASKED) == [{"role": "user", "content": "Where is my card?"}]
    assert [turn["role"] for turn in Prompt().messages(WITH_SYSTEM)] == ["system", "user"]


def test_a_system_prompt_comes_first_and_never_in_place_of_the_questions_own() -> None:
    prompt = Prompt(system="You sort questions.")
    assert prompt.messages(ASKED)[0] == {"role": "system", "content": "You sort questions."}
    assert [turn["content"] for turn in prompt.messages(WITH_SYSTEM)] == ["Be brief.", "Hm?"]


def test_the_closed_set_is_told_behind_the_system_message() -> None:
    prompt = Prompt(system="You sort questions.", answers=("card_arrival", "card_lost"))
    system, user = prompt.messages(ASKED)
    assert system["content"] == f"You sort questions.\n\n{ANSWER_LIST_INTRO}\n- card_arrival\n- card_lost"
    assert user["content"] == "Where is my card?"
    assert prompt.messages(WITH_SYSTEM)[0]["content"].startswith("Be brief.\n\n" + ANSWER_LIST_INTRO)
    assert Prompt(answers=("a", "b")).messages(ASKED)[0]["content"] == f"{ANSWER_LIST_INTRO}\n- a\n- b"


def test_the_base_at_its_best_has_the_candidates_prompt_and_where_there_is_one_the_list() -> None:
    (plain,) = base_at_its_best("smol", system="Be kind.")
    assert (plain.model, plain.prompt.system, plain.prompt.answers) == ("smol", "Be kind.", ())
    plain, told = base_at_its_best("smol", system=None, answers=["yes", "no"])
    assert (plain.prompt.answers, told.prompt.answers) == ((), ("yes", "no"))
    assert plain.label != told.label


def test_for_json_it_is_told_the_schema_and_every_base_is_shown_examples() -> None:
    plain, told, shown = base_at_its_best("smol", system="Be kind.", instructions="JSON only.", examples=3)
    assert [arm.label for arm in (plain, told, shown)] == ["base", "base told the schema", "base shown examples"]
    assert (plain.prompt.is_plain, told.prompt.is_plain, shown.prompt.is_plain) == (True, False, False)
    assert told.prompt == Prompt(system="Be kind.", instructions="JSON only.")
    assert shown.prompt == told.prompt.model_copy(update={"examples": 3})
    assert told.prompt.messages(ASKED)[0]["content"] == "Be kind.\n\nJSON only."
    (plain, shown) = base_at_its_best("smol", system=None, examples=3)
    assert shown.prompt == Prompt(examples=3)
    listed = base_at_its_best("smol", system=None, answers=["yes", "no"], examples=8)[2]
    assert listed.prompt == Prompt(answers=("yes", "no"), examples=8)
    # stored twice, a long list would make the verdict's request body too large to repeat it
    answers = [f"{'label ' * 12}{number}" for number in range(500)]
    _, told, shown = base_at_its_best("smol", system="Be kind.", answers=answers, examples=8)
    assert (told.prompt.answers, shown.prompt) == (tuple(answers), Prompt(system="Be kind.", examples=8))


@pytest.mark.parametrize(
    ("template", "switches", "always"),
    [
        ("{% if enable_thinking is false %}<think></think>{% endif %}", {"enable_thinking": False}, False),
        ("{%- if thinking %}<think>{% endif %}", {"thinking": False}, False),
        ("{% if not thinking is defined %}{% set thinking = false %}{% endif %}<think>", {"thinking": False}, False),
        ("{{ message.thinking }}{{ message['thinking'] }}<think>", {}, True),
        ("I am thinking.{% set thinking = 1 %}<think>", {}, True),
        ("{% if add_generation_prompt %}<think>{% endif %}", {}, True),
        ("{{ messages }}", {}, False),
        ("", {}, False),
    ],
)
def test_thinking_is_turned_off_where_the_template_can(template: str, switches: dict[str, bool], always: bool) -> None:
    assert (template_switches(template), thinks(template)) == (switches, always)


def test_an_outside_endpoint_has_no_grounding() -> None:
    with pytest.raises(ValidationError, match="grounding"):
        Arm(label="other", model="gpt", endpoint="other", grounding={"vector_store_ids": ["vs_1"]})


def test_the_base_has_the_grounding_of_the_version_and_says_so() -> None:
    settings = {"provider": "embedded", "vector_store_ids": ["vs_1"], "template": None, "filters": None, "timeout_s": 1}
    arms = base_at_its_best("smol", system="Be kind.", answers=["yes", "no"], grounding=settings)
    assert [arm.label for arm in arms] == ["base with passages", "base with passages told the answers"]
    asked = {"provider": "embedded", "vector_store_ids": ["vs_1"], "timeout_s": 1}
    assert [arm.grounding for arm in arms] == [asked, asked]
    assert base_at_its_best("smol", system=None, grounding=None)[0].grounding is None
