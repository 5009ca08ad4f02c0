"""What is taken off an answer before it is scored, and what never is: no wrong answer may become a right one."""

from __future__ import annotations

import pytest

from trainer.evaluate.announced import closed_labels
from trainer.evaluate.metrics.choose import metric_by_name
from trainer.evaluate.reading import form_of, read_answer

JSON = '{"order": 7}'
LABELS = closed_labels(["card lost", "card late", "top up", "card"] * 2)


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


ANNOUNCED = [
    "The answer is card lost because it was never delivered.",
    "It never came. The answer is **card lost**, since the post office has it.",
    "The answer is Card Lost, as it was never delivered.",
    "The most appropriate category is card lost.",
    "So the most likely label for this message is: card lost",
    "### Answer\ncard lost",
    "It never came.\n\n## Final answer:\n\ncard lost.",
    "Answer:\ncard lost",
    "It never came.\n\n\\boxed{card lost}",
    r"The final answer is $\boxed{\text{card lost}}$.",
]


def label_score(answer: str, labels: frozenset[str] = LABELS) -> float:
    exact = metric_by_name("exact_match")
    return exact.score(read_answer(answer, "card lost", "label", labels), "card lost")


@pytest.mark.parametrize("answer", ANNOUNCED)
def test_a_sentence_that_announces_one_label_of_a_closed_set_is_read(answer: str) -> None:
    assert label_score(answer) == 1
    assert label_score(answer, frozenset()) == 0, "without a closed set nothing says where the label ends"
    assert label_score(answer.replace("card lost", "card late").replace("Card Lost", "card late")) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is card lost because it is not card late.",
        "The answer is not card lost because it was delivered.",
        "The answer is card lost or card late.",
        "The answer is card lost or stolen.",
        "The answer is card lost, or maybe a refund.",
        "The answer is card lost as well as a refund.",
        "The answer is card lost-and-found because it says so.",
        "The answer is card lost because it never came. The answer is top up.",
        "The answer is card late.\nThe answer is card lost because it never came.",
        "card late\nThe answer is card lost because it never came.",
        "The answer is card lost because it never came.\nNo, it is late.",
        "### Answer\ncard lost\ncard late",
        "### Answer\ncard late\n### Answer\ncard lost",
        r"\boxed{card late} \boxed{card lost}",
        r"\boxed{card lost} or card late",
        "It never came.\ncard lost",
    ],
)
def test_two_labels_are_no_answer_and_neither_is_what_is_said_in_passing(answer: str) -> None:
    assert label_score(answer) == 0


def test_the_longest_label_is_the_one_that_is_announced() -> None:
    assert read_answer("The answer is card because it is lost.", "card", "label", LABELS) == "card"
    assert read_answer("The answer is card lost because it is.", "card", "label", LABELS) == "card lost"


@pytest.mark.parametrize(
    ("references", "closed"),
    [
        (["a", "b", "a", "B."], {"a", "b"}),
        (["a", "b", "c", "d"], set()),  # nothing occurs twice
        (["a", "a", "b", "c", "d"], set()),
        (["A*", "A*", "A", "A"], set()),  # an asterisk that Markdown could have put there
        (["word " * 20, "word " * 20], set()),
    ],
)
def test_labels_are_closed_where_they_come_again(references: list[str], closed: set[str]) -> None:
    assert closed_labels(references) == closed


@pytest.mark.parametrize(("start", "end"), [("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]")])
@pytest.mark.parametrize(("metric", "right"), [("exact_match", "card lost"), ("json_exact", JSON)])
def test_every_kind_of_thinking_block_is_taken_off(start: str, end: str, metric: str, right: str) -> None:
    assert score(metric, f"{start}It is card late.{end}\n{right}", right) == 1
    assert score(metric, f"It is card late.{end}\n{right}", right) == 1
    assert score(metric, f"{start}{right}", right) == 0
    assert score(metric, f"{start}{right}{end}", right) == 0


def test_free_text_loses_its_thinking_alone() -> None:
    assert read_answer("<think>Hm.</think> Ahoy!\n```\ncode\n```", "Aye.", "text") == "Ahoy!\n```\ncode\n```"
    assert read_answer("Answer: ahoy", "Aye.", "text") == "Answer: ahoy"
    assert read_answer("Ahoy, matey!  ", "Aye.", "text") == "Ahoy, matey!  "
    assert read_answer("<think>forever", "Aye.", "text") == ""
    assert read_answer("", "Aye.", "label") == ""


def test_a_pattern_for_the_thinking_reads_all_that_was_said() -> None:
    assert score("regex", "<think>a</think>b", "b", pattern=r"^<think>.*</think>{reference}$") == 1
    assert score("regex", "<think>b</think>a", "b", pattern="{reference}") == 0
