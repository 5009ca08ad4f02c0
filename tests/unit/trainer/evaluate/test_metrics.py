from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.base import Metric, words
from trainer.evaluate.metrics.match import Contains, ExactMatch, Regex
from trainer.evaluate.metrics.overlap import EditSimilarity, RougeL, TokenF1
from trainer.evaluate.metrics.structure import JsonExact, JsonFields, JsonSchema, JsonValid
from trainer.evaluate.metrics.style import Length, Refusal

ALL: list[Metric] = [
    *(
        ExactMatch(),
        Contains(),
        JsonValid(),
        JsonExact(),
        JsonFields(),
        TokenF1(),
        RougeL(),
        EditSimilarity(),
        Refusal(),
    )
]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("card_arrival", "card_arrival", 1),
        (" Card_Arrival.\n", "card_arrival", 1),
        ('"card_arrival"', "card_arrival", 1),
        ("**Yes!**", "yes", 1),
        ("card arrival", "card_arrival", 0),
        ("card-arrival", "card_arrival", 0),
        ("The answer is card_arrival", "card_arrival", 0),
        ("", "card_arrival", 0),
        ("ﬁne", "fine", 1),
        # signs, points and grades are no edges, and marks alone are an answer
        *(("1", "-1", 0), ("**-1**", "-1", 1), ("5", ".5", 0), ("5.", "5", 1), ("B", "B-", 0), ("- yes", "yes", 1)),
        *(("", "-", 0), ("", "?", 0), ("**", "***", 0), ("***", "***", 1)),
    ],
)
def test_exact_match_forgives_case_and_edges_alone(answer: str, reference: str, score: float) -> None:
    assert ExactMatch().score(answer, reference) == score


def test_contains_is_kinder_and_not_to_an_empty_reference() -> None:
    assert Contains().score("The answer is Card_Arrival, I think", "card_arrival") == 1
    assert Contains().score("I do not know", "card_arrival") == 0
    assert Contains().score("anything", "...") == 0
    assert Contains().score("anything", " ") == 0


def test_an_asterisk_after_a_letter_is_a_grade_and_several_are_markdown() -> None:
    for answer, reference, same in (
        ("A*", "A", 0),
        ("A", "A*", 0),
        ("A*.", "a*", 1),
        ("**A**", "A", 1),
        ("*A*", "A", 1),
        ("* A", "A", 1),
        ("5*", "5", 1),
    ):
        assert ExactMatch().score(answer, reference) == same


def test_where_words_have_no_spaces_each_character_counts() -> None:
    author = "您的订单已经发货，预计三天内送达，感谢您的耐心等待。"
    nearly, unrelated = "您的订单已发货，预计三天送达，感谢您耐心等待。", "我是一个语言模型。"
    for metric in (RougeL(), TokenF1()):
        assert metric.score(nearly, author) > 0.85
        assert metric.score(unrelated, author) < 0.2
    assert words("คำสั่งซื้อ ok") == ["คํ", "า", "สั่", "ง", "ซื้", "อ", "ok"]
    assert words("カナとabc 3日") == ["カ", "ナ", "と", "abc", "3", "日"]
    assert words("Hello, wörld_1 한국어") == ["hello", "wörld_1", "한국어"]


def test_a_pattern_is_searched_and_may_hold_the_reference() -> None:
    assert Regex(r"^\d{4}$").score("2024", "") == 1
    assert Regex(r"^\d{4}$").score("in 2024", "") == 0
    assert Regex(r"\b{reference}\b").score("it is a+b, surely", "a+b") == 1
    assert Regex(r"^{reference}$").score("axb", "a.b") == 0


def test_an_invalid_or_endless_pattern_is_refused() -> None:
    with pytest.raises(EvaluationInvalid, match="pattern"):
        Regex("(")
    with pytest.raises(EvaluationInvalid, match="more than"):
        Regex(r"^(a|aa)+$").score("a" * 60 + "b", "")


@pytest.mark.parametrize(
    ("answer", "valid"), [('{"a": 1}', 1), ("[1]", 1), ("1", 0), ('Sure! {"a": 1}', 0), ('{"a": NaN}', 0), ("", 0)]
)
def test_json_is_the_whole_answer(answer: str, valid: float) -> None:
    assert JsonValid().score(answer, "") == valid


def test_invalid_json_equals_nothing() -> None:
    assert JsonExact().score("I cannot", "no json at all") == 0
    assert JsonExact().score("no json", "no json") == 0
    assert JsonExact().score('{"a": 1}', "```json") == 0


def test_a_schema_changes_its_dialect_nowhere_within() -> None:
    top = {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"$schema": {"type": "string"}}}
    assert JsonSchema(top).score('{"$schema": "x"}', "") == 1
    within = {"allOf": [{"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a|aa)+$"}]}
    with pytest.raises(EvaluationInvalid, match="at the top level only"):
        JsonSchema({"properties": {"a": within}})


def test_a_schema_is_kept_or_not() -> None:
    schema = JsonSchema(SCHEMA)
    assert [schema.score(text, "") for text in ('{"n": 3}', '{"n": "3"}', "{}", "no")] == [1, 0, 0, 0]


def test_a_schema_reaches_nothing_outside_and_takes_no_unbounded_pattern() -> None:
    with pytest.raises(EvaluationInvalid, match="not a valid JSON Schema"):
        JsonSchema({"type": "nothing"})
    with pytest.raises(EvaluationInvalid, match="cannot be resolved"):
        JsonSchema({"$ref": "http://127.0.0.1:9/schema.json"}).score("{}", "")
    with pytest.raises(EvaluationInvalid, match="patternProperties"):
        JsonSchema({"patternProperties": {"^a": {}}})
    slow = JsonSchema({"type": "string", "pattern": "^(a|aa)+$"})
    with pytest.raises(EvaluationInvalid, match="more than"):
        slow.score(json.dumps("a" * 60 + "b"), "")


def test_json_is_compared_by_meaning_and_not_by_look() -> None:
    exact = JsonExact()
    assert exact.score('{"b": [1, 2], "a": null}', '{"a":null,"b":[1,2]}') == 1
    assert exact.score('{"b": [2, 1]}', '{"b": [1, 2]}') == 0
    assert exact.score('{"a": true}', '{"a": 1}') == 0
    assert exact.score('{"a": "1"}', '{"a": 1}') == 0
    assert exact.score("nothing", '{"a": 1}') == 0
    assert JsonExact(SCHEMA).score('{"m": 1}', '{"m": 1}') == 0


def test_fields_count_one_by_one() -> None:
    fields = JsonFields()
    assert fields.score('{"a": 1, "b": 2}', '{"a": 1, "b": 3}') == 0.5
    assert fields.score('{"a": {"x": [1, 2]}}', '{"a": {"x": [1, 2]}}') == 1
    assert fields.score("{}", "{}") == 1
    assert fields.score("none", "{}") == 0


SAME = ['{"a": 1}', '{"a": 1.0}', '{"a": 1e0}']
DIFFERENT = [
    *('{"a": "1"}', '{"a": true}', '{"a": [1]}', '{"a": {"0": 1}}', '{"a": {"b": 1}}', '{"a/b": 1}', '{"a.b": 1}'),
    *('{"a/0": 1}', '{"a": []}', '{"a": {}}', '{"a": "[]"}', '{"a": null}', '{"a": 1, "b": 1}', '{"": 1}', "1", "{}"),
    *('{"a": [1, 1]}', '{"a": [[1], 1]}', '{"a": ["bool", true]}', "[]", '{"a": -0.0}', '{"a": false}'),
]


@pytest.mark.parametrize("reference", [*SAME, *DIFFERENT])
def test_all_fields_agree_where_the_whole_is_equal_and_only_there(reference: str) -> None:
    for answer in (*SAME, *DIFFERENT):
        equal = answer == reference or {answer, reference} <= set(SAME)
        scores = JsonExact().score(answer, reference), JsonFields().score(answer, reference)
        assert (scores[0] == 1, scores[1] == 1) == (equal, equal), answer


def test_words_in_common_and_words_in_order() -> None:
    assert TokenF1().score("the cat sat", "sat the cat") == 1
    assert TokenF1().score("a a a", "a b") == pytest.approx(2 * 1 / 5)
    # the longest common subsequence of "police killed the gunman" and "police kill the gunman" has three words
    assert RougeL().score("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert RougeL().score("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert (RougeL().score("", "a"), RougeL().score("", "")) == (0, 1)


def test_edit_similarity() -> None:
    assert EditSimilarity().score("kitten", "sitting") == pytest.approx(1 - 3 / 7)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I am unable to answer this question.", 1),
        ("As an AI language model, I have no feelings.", 1),
        ("I cannot assist with that request.", 1),
        ("Unfortunately, we cannot do this.", 1),
        ("  ", 1),
        ("I'm happy to help! You can return it.", 0),
        ("Your parcel cannot be found; we are looking for it.", 0),
        ("We are sorry for the delay. Your parcel arrives tomorrow.", 0),
        ("The capital is Paris.", 0),
    ],
)
def test_refusals_by_how_they_begin(answer: str, refused: float) -> None:
    assert Refusal().score(answer, "") == refused


def test_length_in_words() -> None:
    assert Length().score("Where is it? Here.", "") == 4


@given(st.text(max_size=60), st.text(max_size=60))
def test_every_score_is_from_0_to_1_and_the_reference_itself_scores_best(answer: str, reference: str) -> None:
    for metric in ALL:
        score = metric.score(answer, reference)
        assert 0 <= score <= 1
        assert not metric.binary or score in (0, 1)
    for metric in (ExactMatch(), TokenF1(), RougeL(), EditSimilarity()):
        assert metric.score(reference, reference) == 1
