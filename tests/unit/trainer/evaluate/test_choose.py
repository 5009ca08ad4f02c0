from __future__ import annotations

import json

import pytest

from trainer.data.format import Example, Message
from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.choose import NAMES, choose_primary, metric_by_name, primary_metric_by_name


def examples(answers: list[str]) -> list[Example]:
    return [
        Example(at, (Message("user", f"question {at}", False), Message("assistant", answer, True)))
        for at, answer in enumerate(answers, start=1)
    ]


def test_a_closed_set_is_matched_exactly_and_known_by_name() -> None:
    choice = choose_primary(examples(["refund", "delay", "lost"] * 5))
    assert (choice.primary.name, choice.answers) == ("exact_match", ("delay", "lost", "refund"))
    assert "contains" in {metric.name for metric in choice.secondary}


def test_json_has_to_be_valid_and_the_same() -> None:
    answers = [json.dumps({"n": at}) for at in range(12)]
    choice = choose_primary(examples(answers))
    assert (choice.primary.name, choice.answers) == ("json_exact", ())
    assert {"json_valid", "json_fields"} <= {metric.name for metric in choice.secondary}
    schema = {"type": "object", "required": ["n"]}
    assert "json_schema" in {metric.name for metric in choose_primary(examples(answers), schema).secondary}
    assert choose_primary(examples(answers), schema).primary.score('{"m": 1}', '{"m": 1}') == 0


def test_the_same_json_over_and_over_is_json_and_no_label() -> None:
    assert choose_primary(examples(['{"ok": true}', '{"ok": false}'] * 6)).primary.name == "json_exact"


def test_numbers_as_answers_are_labels_and_no_json() -> None:
    assert choose_primary(examples(["1", "2"] * 6)).primary.name == "exact_match"


def test_free_text_is_measured_by_its_meaning() -> None:
    choice = choose_primary(examples([f"Thank you for question {at}, dear guest." for at in range(12)]))
    assert (choice.primary.name, choice.answers) == ("similarity", ())
    assert choice.primary.decides


def test_and_by_words_in_order_where_the_model_does_not_know_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    german = [f"Vielen Dank für Frage {at}, lieber Gast, wir melden uns bald." for at in range(12)]
    assert choose_primary(examples(german)).primary.name == "rouge_l"
    monkeypatch.setattr("trainer.evaluate.metrics.similarity.PACKAGE", "no_such_package")
    english = [f"Thank you for question {at}, dear guest." for at in range(12)]
    assert choose_primary(examples(english)).primary.name == "rouge_l"


def test_without_examples_there_is_no_choice() -> None:
    with pytest.raises(EvaluationInvalid):
        choose_primary([])


def test_every_name_is_a_metric_of_that_name() -> None:
    for name in NAMES:
        assert metric_by_name(name, pattern="x", schema={}).name == name


@pytest.mark.parametrize(
    "name", ["perplexity", "voice", "length_words", "refusal", "json_valid", "json_schema", "nonsense"]
)
def test_metrics_of_style_cannot_decide(name: str) -> None:
    with pytest.raises(EvaluationInvalid):
        primary_metric_by_name(name, schema={})


@pytest.mark.parametrize("name", ["regex", "json_schema"])
def test_what_a_metric_needs_has_to_be_given(name: str) -> None:
    with pytest.raises(EvaluationInvalid, match="needs"):
        metric_by_name(name)
