"""Tools in training data: what a line may hold, what of it is trained on, and what is judged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.trainer.conftest import TEMPLATE, TOOL_TEMPLATE, make_tokenizer
from trainer.data.format import Example, parse_chat
from trainer.data.prepare import DataRules, Source, inspect
from trainer.data.render import Renderer
from trainer.data.trained_examples import NormalizedExample
from trainer.errors import DataInvalid
from trainer.evaluate.arms import Arm, questions
from trainer.evaluate.metrics.choose import choose_primary
from trainer.evaluate.metrics.structure import ToolCalls

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "note": "not a key of a function: the engine drops it",
    },
}
CALL = {"id": "call1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call1", "content": "-3 C"}
ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "How cold is Oslo?"},
        CALLING,
        RESULT,
        {"role": "assistant", "content": "Minus three."},
    ],
    "tools": [WEATHER],
}


def example(row: dict[str, Any]) -> Example:
    return parse_chat(json.dumps(row).encode())[0]


def renderer(template: str = TOOL_TEMPLATE) -> Renderer:
    tokenizer = make_tokenizer(template)
    return Renderer(tokenizer, stop_tokens={tokenizer.convert_tokens_to_ids("<|im_end|>")}, max_length=4096)


def trained_texts(row: dict[str, Any]) -> list[str]:
    """The runs of trained tokens of a row, as texts."""
    shown = renderer()
    (sequence,) = shown.render(example(row))
    runs: list[list[int]] = []
    for at, (token, trained) in enumerate(zip(sequence.tokens, sequence.trained, strict=True)):
        if trained:
            runs[len(runs) :] = [] if at and sequence.trained[at - 1] else [[]]
            runs[-1].append(token)
    return [shown.text(run) for run in runs]


def test_calls_and_answers_are_trained_and_neither_tools_nor_results() -> None:
    call = '<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|im_end|>'
    assert trained_texts(ROW) == [call, "Minus three.<|im_end|>"]


def test_the_template_gets_tools_as_the_engine_hands_them_over() -> None:
    shown = renderer()
    text = shown.text(shown.render(example(ROW))[0].tokens)
    declared = text.split("Tools:")[1].split("<|im_end|>")[0]
    parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
    assert json.loads(declared) == {
        "type": "function",
        "function": {"name": "weather", "description": None, "parameters": parameters},
    }


def test_a_message_of_weight_0_is_neither_trained_on_nor_judged() -> None:
    row = copy.deepcopy(ROW)
    row["messages"][3]["weight"] = 0
    assert len(trained_texts(row)) == 1
    judged = example(row)
    assert judged.judged.tool_calls
    assert [message.role for message in judged.prompt] == ["user"]
    row["messages"][1]["weight"], row["messages"][3]["weight"] = 0, 1
    assert trained_texts(row) == ["Minus three.<|im_end|>"]
    assert example(row).judged.content == "Minus three."


def test_a_judged_tool_call_is_compared_as_json_and_asked_with_its_tools() -> None:
    (question,) = questions([example({**ROW, "messages": ROW["messages"][:2]})])
    assert json.loads(question.reference) == [{"name": "weather", "arguments": {"city": "Oslo"}}]
    assert question.answer.sent() == {"role": "assistant", "content": "", "tool_calls": (CALL,)}
    assert [tool["function"]["name"] for tool in question.tools] == ["weather"]
    (after,) = questions([example(ROW)])
    sent = Arm(label="a", model="m").prompt.messages(after)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo"}'
    assert sent[2] == RESULT


def test_another_call_is_another_answer_to_the_same_question() -> None:
    other = copy.deepcopy({**ROW, "messages": ROW["messages"][:2]})
    other["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome"}'
    first, second = (
        NormalizedExample.example(example(row)) for row in ({**ROW, "messages": ROW["messages"][:2]}, other)
    )
    assert first.question == second.question
    assert first.answer != second.answer


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ('[{"name": "f", "arguments": {"a": 1, "b": 2}}]', '[{"arguments": {"b": 2, "a": 1}, "name": "f"}]', 1),
        ('[{"name": "f", "arguments": {"a": 1}}]', '[{"name": "f", "arguments": {"a": "1"}}]', 0),
        ('[{"name": "f", "arguments": {"a": true}}]', '[{"name": "f", "arguments": {"a": 1}}]', 0),
        ("I cannot look that up.", '[{"name": "f", "arguments": {}}]', 0),
        ('[{"name": "f", "arguments": {}}]', "It is cold.", 0),
        ("It is warm.", "It is cold.", 1),
        (
            '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
            '[{"name": "g", "arguments": {}}, {"name": "f", "arguments": {}}]',
            1,
        ),
    ],
)
def test_calls_are_equal_or_not(answer: str, reference: str, score: float) -> None:
    assert ToolCalls().score(answer, reference) == score


def test_equal_numbers_of_several_calls_are_equal_however_they_are_written() -> None:
    def calls(*numbers: float) -> str:
        return json.dumps([{"name": "f", "arguments": {"x": number}} for number in numbers])

    assert ToolCalls().score(calls(1.0, 10.0), calls(10, 1)) == 1
    assert ToolCalls().score(calls(1.5, 10.0), calls(1, 10)) == 0


def test_where_half_of_the_answers_call_tools_the_calls_decide() -> None:
    calls, texts = example({**ROW, "messages": ROW["messages"][:2]}), example(ROW)
    assert choose_primary([calls, texts]).primary.name == "tool_calls"
    assert choose_primary([calls, texts, texts]).primary.name != "tool_calls"


def change(**changes: Any) -> Callable[[], dict[str, Any]]:
    """A row with one message, by its index as `m1`, or another key changed."""

    def row() -> dict[str, Any]:
        changed = copy.deepcopy(ROW)
        for key, value in changes.items():
            if key[0] == "m" and key[1:].isdigit():
                changed["messages"][int(key[1:])] |= value
            else:
                changed[key] = value
        return changed

    return row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (change(tools=[]), "messages[1].tool_calls calls 'weather', which is not in tools"),
        (change(tools=[WEATHER, WEATHER]), "tools declares 'weather' twice"),
        (change(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name is 'a b'"),
        (
            change(tools=[{"type": "function", "function": {"name": "weather", "parameters": {"type": "array"}}}]),
            "tools[0].function.parameters must be a JSON Schema of an object",
        ),
        (change(m2={"tool_call_id": "call2"}), "messages[2].tool_call_id is 'call2'; the open calls have 'call1'"),
        (change(m2={"role": "user"}), "messages[2].tool_call_id is not supported here"),
        (change(messages=[ROW["messages"][0], CALLING, ROW["messages"][3]]), "call of 'weather' before it has no tool"),
        (
            change(m1={"tool_calls": [{**CALL, "function": {"name": "weather", "arguments": "[1]"}}]}),
            "messages[1].tool_calls[0].function.arguments is '[1]'; must be a string that holds a JSON object",
        ),
        (
            change(m1={"tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"a": NaN}'}}]}),
            "must be a string that holds a JSON object",
        ),
        (change(m1={"tool_calls": [CALL, CALL]}), "two calls have the same id"),
        (change(m1={"tool_calls": None}), "messages[1].content must be a string"),
    ],
)
def test_a_conversation_that_could_not_be_served_is_refused(row: Callable[[], dict[str, Any]], reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        example(row())
    assert reason in caught.value.problems[0].reason


def rows(number: int) -> bytes:
    def row(at: int) -> dict[str, Any]:
        return json.loads(json.dumps(ROW).replace("Oslo", f"Town {at * at} of {chr(97 + at % 26) * 9}"))  # type: ignore[no-any-return]

    return b"\n".join(json.dumps(row(at)).encode() for at in range(number))


def test_a_base_whose_template_has_no_tools_refuses_them_by_line() -> None:
    plain = [
        {"messages": [{"role": "user", "content": f"q {at}"}, {"role": "assistant", "content": "a"}]} for at in range(9)
    ]
    content = b"\n".join([*(json.dumps(row).encode() for row in plain), rows(2)])
    report = inspect(Source("f", content), None, renderer(TEMPLATE), DataRules()).report
    (finding,) = [each for each in report.findings if each.code == "tools_unsupported"]
    assert (finding.severity, finding.lines, report.refused) == ("refused", (10, 11), True)
    assert "does not render" in finding.message


def test_a_file_with_tools_goes_through_the_whole_check() -> None:
    prepared = inspect(Source("f", rows(24)), None, renderer(), DataRules(strict=True))
    assert not prepared.report.refused, prepared.report.findings
    assert (len(prepared.sequences), len(prepared.held_out)) == (14, 10)
    assert "<call>" in "".join(piece.text for piece in prepared.report.shown[0].pieces if piece.trained)
