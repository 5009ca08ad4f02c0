"""What is taken off an answer before it is scored, and what never is: no wrong answer may become a right one."""

from __future__ import annotations

import pytest

from trainer.evaluate.metrics.choose import metric_by_name
from trainer.evaluate.reading import form_of, read_answer

JSON = '{"order": 7}'


def score(metric: str, answer: str, reference: str, **options: str) -> float:
    chosen = metric_by_name(metric, **options)
    return chosen.score(read_answer(answer, reference, form_of(chosen)), reference)


@pytest.mark.parametrize(
    "answer",
    [
        "<think>It was never delivered.</think>card lost",
        "\n<think>\n\n</think>\n\ncard lost",
        "It was never delivered.\n</think>\n\ncard lost",  # the template has written the opening tag
        "```\ncard lost\n```",
        "```text\ncard lost\n```\n",
        "```card lost```",
        "Answer: card lost",
        "It was never delivered.\nAnswer: card lost.",
        "The answer is card lost.",
        "The answer is: **card lost**",
        "The correct label is `card lost`.",
        "**Final answer: card lost**",
        "**Answer:** card lost",
        "So, the final answer is: card lost",
        "It was never delivered.\n\n**card lost**",
        "<think>Hm.</think>It was never delivered.\nAnswer: card lost",
    ],
)
def test_a_right_label_is_right_whatever_stands_around_it(answer: str) -> None:
    assert score("exact_match", answer, "card lost") == 1


@pytest.mark.parametrize(
    "answer",
    [
        "card late, card lost, top up",
        "Answer: card late, card lost, top up",
        "Answer: card late or card lost",
        "Answer: card late\nAnswer: card lost",
        "**card late**\n**card lost**",
        "The label is card late.\nThe label is card lost.",
        "The answer is not card lost",
        "It is not **card lost**.",
        "The customer writes **card lost** and wants a top up.",
        "Answer: card lost\nNo, it is card late",
        "Answer: card late\n**card lost**",
        "<think>card lost</think>",
        "<think>card lost</think>card late",
        "<think>It must be\nAnswer: card lost",  # cut before it answered
        "card late <think>or</think> card lost",
        "I think:\n```\ncard lost\n```",
        "```\ncard late\n```\n```\ncard lost\n```",
    ],
)
def test_a_wrong_label_stays_wrong(answer: str) -> None:
    assert score("exact_match", answer, "card lost") == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (f"```json\n{JSON}\n```", 1),
        (f"```\n{JSON}\n```", 1),
        (f"```{JSON}```", 1),
        (f'<think>{{"order": 8}}</think>\n```json\n{JSON}\n```', 1),
        (f"Here it is:\n```json\n{JSON}\n```", 0),
        (f"```json\n{JSON}\n```\nAnything else?", 0),
        (f'```json\n{{"order": 8}}\n```\n```json\n{JSON}\n```', 0),
        (f'```json\n{{"order": 8}}\n```\n{JSON}\n```json\n{JSON}\n```', 0),
        (f"Answer: {JSON}", 0),
        ('```json\n{"order": 8}\n```', 0),
    ],
)
def test_json_is_taken_out_of_one_fence_and_never_out_of_prose(answer: str, right: float) -> None:
    assert score("json_exact", answer, JSON) == right


@pytest.mark.parametrize("reference", ["<think>Hm.</think>yes", "Answer: yes", "**yes**", "```\nyes\n```", "__yes__"])
def test_what_the_author_s_answer_has_stays(reference: str) -> None:
    assert read_answer(reference, reference, "label") == reference
    assert score("exact_match", reference, reference) == 1


def test_free_text_loses_its_thinking_alone() -> None:
    assert read_answer("<think>Hm.</think> Ahoy!\n```\ncode\n```", "Aye.", "text") == "Ahoy!\n```\ncode\n```"
    assert read_answer("Answer: ahoy", "Aye.", "text") == "Answer: ahoy"
    assert read_answer("Ahoy, matey!  ", "Aye.", "text") == "Ahoy, matey!  "
    assert read_answer("<think>forever", "Aye.", "text") == ""
    assert read_answer("", "Aye.", "label") == ""


def test_a_pattern_for_the_thinking_reads_all_that_was_said() -> None:
    assert score("regex", "<think>a</think>b", "b", pattern=r"^<think>.*</think>{reference}$") == 1
    assert score("regex", "<think>b</think>a", "b", pattern="{reference}") == 0
