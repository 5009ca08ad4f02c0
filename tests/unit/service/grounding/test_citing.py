"""Citations in answers and streams of each dialect: what the engine sends goes in, what the client gets comes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadGateway
from service.grounding.citations import NO_CITATIONS, Citations, Spans
from service.grounding.citing import CitationRelay, Citer, MessagesCiter, ResponsesCiter
from service.grounding.provider import Passage
from service.http.stream import Relay
from service.inference.anthropic import MessagesRelay
from service.inference.completions import ChatRelay
from service.inference.relay import Renamer
from service.inference.responses import ResponsesRelay
from tests.unit.service.grounding.fakes import ORDERS, RETURNS, Told, hook
from tests.unit.service.inference import test_anthropic, test_responses
from tests.unit.service.inference.fakes import DIGESTS, DONE, World, completion, event, usage_event

PAGE = Passage("w-1", "The shop was founded in 1887.", 0.4, "https://shop.example/history")
NOTE = Passage("n-1", "The cat is called Marmalade.", 0.3, "a note")
QUESTION = "How long may I send things back, and what is the cat's name?"
SHOWN = (RETURNS, ORDERS, PAGE, NOTE)
CITATIONS = Citations(SHOWN, tuple(passage.text for passage in SHOWN), QUESTION)
ANSWER = "You have 45 days for that. The cat is Marmalade, and we began in 1887."
USED = [True, False, True, True]
PIECES = [ANSWER[at : at + 7] for at in range(0, len(ANSWER), 7)]
END_OF_FIRST = len("You have 45 days for that.")
FILE = {"type": "file_citation", "file_id": "file-1", "filename": "returns.md", "index": END_OF_FIRST}
PLACE = {"start_index": END_OF_FIRST + 1, "end_index": len(ANSWER)}
URL = {"type": "url_citation", **PLACE, "title": PAGE.source, "url": PAGE.source}
NESTED = {"type": "url_citation", "url_citation": {name: URL[name] for name in URL if name != "type"}}
"""As chat completions have it."""


def location(index: int) -> dict[str, Any]:
    passage = SHOWN[index]
    return {
        "type": "search_result_location",
        "cited_text": passage.text,
        "search_result_index": index,
        "source": passage.file_id or passage.source,
        "title": passage.source,
        "start_block_index": 0,
        "end_block_index": 1,
    }


def feed(relay: Relay, whole: bytes, cuts: Sequence[int] = ()) -> list[bytes]:
    """The client's events, without their terminators."""
    out = b"".join(relay.feed(whole[a:b]) for a, b in pairwise([0, *sorted(cuts), len(whole)]))
    assert out.endswith(b"\n\n")
    return out.split(b"\n\n")[:-1]


def data_of(sent: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(sent.partition(b"data: ")[2])
    return parsed


def used(citations: list[dict[str, Any]]) -> list[bool]:
    return [each["used"] for each in citations]


def chunk(delta: dict[str, Any], number: int = 0, reason: str | None = None) -> bytes:
    choice = {"index": number, "delta": delta, "finish_reason": reason}
    return event(id="c1", object="chat.completion.chunk", created=1, model=DIGESTS[3], choices=[choice])


CHAT = b"".join(
    [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": piece}) for piece in PIECES),
        chunk({}, reason="stop"),
        usage_event(),
        DONE,
    ]
)


def chat_relay(citations: Citations = CITATIONS) -> CitationRelay:
    return CitationRelay(ChatRelay(Renamer(test_responses.VOICE), show_usage=True), Citer(citations))


@given(cuts=st.lists(st.integers(0, len(CHAT)), max_size=12))
def test_a_chat_stream_is_cited_where_it_finishes(cuts: list[int]) -> None:
    relay = chat_relay()
    events = feed(relay, CHAT, cuts)
    assert relay.done
    assert relay.counted() is not None
    assert ["citations" in data_of(sent) for sent in events[:-1]] == [*[False] * (len(PIECES) + 1), True, False]
    last = data_of(events[-3])
    assert used(last["citations"]) == USED
    assert last["choices"][0]["delta"]["annotations"] == [NESTED]
    assert "".join(data_of(sent)["choices"][0]["delta"].get("content", "") for sent in events[:-2]) == ANSWER


def test_each_of_several_choices_has_its_own() -> None:
    stream = [
        chunk({"content": "You have 45 days."}, 0),
        chunk({"content": "I could not say."}, 1),
        chunk({}, 1, "stop"),
        chunk({}, 0, "stop"),
        DONE,
    ]
    *_, second, first, _ = feed(chat_relay(), b"".join(stream))
    assert used(data_of(first)["citations"]) == [True, False, False, False]
    assert used(data_of(second)["citations"]) == [False] * 4
    assert data_of(second)["choices"][0]["delta"]["annotations"] == []
    choices = [{"index": at, "message": {"content": text}} for at, text in enumerate(["45 days.", "Marmalade!"])]
    whole = orjson.loads(Citer(CITATIONS).whole(orjson.dumps({"choices": choices})))
    assert used(whole["citations"]) == [True, False, False, True], "what any of them uses"
    assert [choice["message"]["annotations"] for choice in whole["choices"]] == [[], []], "a file's are in Responses"


def test_a_file_whose_source_is_an_address_has_that_in_chat_completions() -> None:
    passage = Passage("w-2", PAGE.text, 0.4, PAGE.source, "vs_a", "file-3")
    citations = Citations((passage,), (passage.text,), QUESTION)
    [annotation] = citations.chat_annotations(citations.spans("We began in 1887."))
    assert (annotation["type"], annotation["url_citation"]["url"]) == ("url_citation", PAGE.source)
    [annotation] = citations.annotations(citations.spans("We began in 1887."))
    assert (annotation["type"], annotation["file_id"]) == ("file_citation", "file-3")


def test_a_stream_without_passages_is_not_parsed() -> None:
    odd = [
        b'data: {"choices":[{"finish_reason":null, no JSON}\n\n',
        b'data: {"choices":[],"a":{"finish_reason":"stop"}}\n\n',
        DONE,
    ]
    events = feed(chat_relay(NO_CITATIONS), b"".join(odd))
    assert events[0] + b"\n\n" == odd[0]
    assert orjson.loads(events[1][6:]) == {"choices": [], "a": {"finish_reason": "stop"}, "citations": []}


def test_an_answer_that_is_no_json_has_citations_that_do_not_say_what_was_used() -> None:
    answer = Citer(CITATIONS).whole(b'{"choices":[NaN]}')
    assert answer.startswith(b'{"choices":[NaN],"citations":[')
    assert b'"used"' not in answer


NOT_JSON = b'[{"token":"a","logprob":NaN,"top_logprobs":[]},{"token":"\\",","logprob":-1}]'
"""Log-probabilities that whoever parses them fails on."""


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_of_a_chat_are_kept_and_not_parsed(is_stream: bool) -> None:
    logprobs = b'{"content":' + NOT_JSON + b"}"
    message = {"role": "assistant", "content": ANSWER}
    choices = [
        {"index": at, "delta" if is_stream else "message": message, "logprobs": 1, "finish_reason": "stop"}
        for at in range(2)
    ]
    body = {"id": "c1", "choices": choices, "usage": {"prompt_tokens": 3}, "prompt_logprobs": 2}
    data = orjson.dumps(body | {"prompt_token_ids": None})
    data = data.replace(b'"logprobs":1', b'"logprobs":' + logprobs).replace(b'_logprobs":2', b'_logprobs":' + NOT_JSON)
    if is_stream:
        cited = Citer(CITATIONS).event(b"data: " + data).removeprefix(b"data: ")
    else:
        cited = Citer(CITATIONS).whole(data)
    assert cited.count(b'"logprobs":' + logprobs) == 2
    assert cited.count(b'"prompt_logprobs":' + NOT_JSON) == 1
    parsed = orjson.loads(cited.replace(NOT_JSON, b"[]"))
    assert used(parsed["citations"]) == USED
    assert list(parsed) == [*body, "prompt_token_ids", "citations"]


def test_log_probabilities_of_a_response_are_kept_and_not_parsed() -> None:
    stream = response_stream().replace(b'"logprobs":[]', b'"logprobs":' + NOT_JSON)
    stream = stream.replace(b'"logprobs":null', b'"logprobs":' + NOT_JSON)
    events = b"\n\n".join(feed(responses_relay(), stream))
    assert events.count(NOT_JSON) == stream.count(NOT_JSON) == len(PIECES) + 5
    last = orjson.loads(events.rpartition(b"data: ")[2].replace(NOT_JSON, b"[]"))
    assert used(last["response"]["citations"]) == USED
    whole = orjson.dumps(response_object([{"type": "message", "content": [], "role": "assistant"}]))
    part = b'{"type":"output_text","text":' + orjson.dumps(ANSWER) + b',"logprobs":' + NOT_JSON + b"}"
    cited = ResponsesCiter(CITATIONS).whole(whole.replace(b'"content":[]', b'"content":[' + part + b"]"))
    assert used(orjson.loads(cited.replace(NOT_JSON, b"[]"))["citations"]) == USED


@pytest.mark.parametrize("field", [{"finish_reason": {}}, {"x": {"finish_reason": {}}}, {}])
def test_a_callers_tool_may_have_fields_named_as_log_probabilities(field: dict[str, Any]) -> None:
    parameters = {"a": {"logprobs": {"type": "object"}, **field}, "logprobs": [], "x": [{"y": [{"logprobs": [1]}]}]}
    tool = {"type": "function", "name": "f", "parameters": parameters, "strict": True}
    response = {**response_object([]), "tools": [tool]}
    cited = orjson.loads(ResponsesCiter(CITATIONS).whole(orjson.dumps(response)))
    assert cited["tools"] == [tool]


def test_a_call_of_a_tool_uses_none() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}
    whole = orjson.loads(Citer(CITATIONS).whole(orjson.dumps({"choices": [{"index": 0, "message": message}]})))
    assert used(whole["citations"]) == [False] * 4


def response_events(text_pieces: Sequence[str] = PIECES, reason: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """A stream of vLLM's, without the sequence numbers; the members are in vLLM's order where that counts."""
    text = "".join(text_pieces)
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text_at = {"item_id": "msg_1", "logprobs": [], "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    item = {"id": "msg_1", "content": [part], "role": "assistant", "status": "completed", "type": "message"}
    opening = response_object([])
    return [
        ("response.created", {"response": opening}),
        ("response.in_progress", {"response": opening}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "content": [], "status": "in_progress"}}),
        ("response.content_part.added", {**at, "part": empty}),
        *(("response.output_text.delta", {**text_at, "delta": piece}) for piece in text_pieces),
        ("response.output_text.done", {**text_at, "text": text}),
        ("response.content_part.done", {**at, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": response_object([item], reason)}),
    ]


def response_object(output: list[Any], reason: str | None = None) -> dict[str, Any]:
    """A response of vLLM's with all that OpenAI documents."""
    return {
        **test_responses.response(reason=reason, usage=test_responses.COUNTS if output else None),
        "created_at": 1,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "function", "name": "f", "parameters": {"usage": {"input_tokens": 7}}, "strict": True}],
        "text": {"format": {"type": "text"}},
    }


def response_stream(**more: Any) -> bytes:
    events = enumerate(response_events(**more))
    return b"".join(test_responses.event(kind, number, **payload) for number, (kind, payload) in events)


def responses_relay(citations: Citations = CITATIONS) -> CitationRelay:
    return CitationRelay(ResponsesRelay(Renamer(test_responses.VOICE)), ResponsesCiter(citations))


@given(
    cuts=st.lists(st.integers(0, len(response_stream())), max_size=12),
    reason=st.sampled_from([None, "max_output_tokens"]),
)
def test_a_response_stream_announces_its_annotations_before_the_text_is_done(
    cuts: list[int], reason: str | None
) -> None:
    payloads = [data_of(sent) for sent in feed(responses_relay(), response_stream(reason=reason), cuts)]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    kinds = [payload["type"] for payload in payloads]
    assert kinds[-6:-1] == [
        *["response.output_text.annotation.added"] * 2,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    added = payloads[-6:-4]
    assert [(each["annotation_index"], each["annotation"]) for each in added] == [(0, FILE), (1, URL)]
    assert all((each["item_id"], each["output_index"], each["content_index"]) == ("msg_1", 0, 0) for each in added)
    assert payloads[-3]["part"]["annotations"] == [FILE, URL]
    assert payloads[-2]["item"]["content"][0]["annotations"] == [FILE, URL]
    last = payloads[-1]["response"]
    assert last["output"][0]["content"][0]["annotations"] == [FILE, URL]
    assert used(last["citations"]) == USED
    assert last["model"] == "voice"
    assert kinds[-1] == ("response.incomplete" if reason else "response.completed")


@given(cuts=st.lists(st.integers(0, sum(map(len, test_responses.stream()))), max_size=12))
def test_a_response_stream_without_passages_is_passed_on_with_an_empty_list(cuts: list[int]) -> None:
    whole = b"".join(test_responses.stream())
    events = feed(responses_relay(NO_CITATIONS), whole, cuts)
    plain = ResponsesRelay(Renamer(test_responses.VOICE)).feed(whole).split(b"\n\n")[:-1]
    assert events[:-1] == plain[:-1]
    last = data_of(events[-1])
    assert last["response"].pop("citations") == []
    assert last == data_of(plain[-1])


def test_a_response_stream_that_fails_without_passages_has_an_empty_list() -> None:
    whole = test_responses.event("response.failed", 0, response=response_object([]))
    assert data_of(feed(responses_relay(NO_CITATIONS), whole)[-1])["response"]["citations"] == []


def test_a_response_stream_judges_each_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    judge = Citations.spans

    def noted(citations: Citations, text: str) -> Spans:
        judged.append(text)
        return judge(citations, text)

    monkeypatch.setattr(Citations, "spans", noted)
    feed(responses_relay(), response_stream())
    assert judged == [ANSWER]


def test_an_error_in_a_response_stream_has_the_next_number() -> None:
    relay = responses_relay()
    whole = response_stream()
    upto = whole.index(b"event: response.content_part.done")
    sent = feed(relay, whole[:upto])
    failed = data_of(relay.error_event(BadGateway("gone"), "id"))
    assert failed["sequence_number"] == data_of(sent[-1])["sequence_number"] + 1
    assert failed["error"]["message"] == "gone"


def message_stream(*blocks: Sequence[str]) -> bytes:
    """A stream of vLLM's with these text blocks, in pieces."""
    events = [test_anthropic.event("message_start", message=test_anthropic.message())]
    for index, pieces in enumerate(blocks):
        opening = {"type": "text", "text": ""}
        events.append(test_anthropic.event("content_block_start", content_block=opening, index=index))
        for piece in pieces:
            delta = {"type": "text_delta", "text": piece}
            events.append(test_anthropic.event("content_block_delta", delta=delta, index=index))
        events.append(test_anthropic.event("content_block_stop", index=index))
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append(test_anthropic.event("message_delta", delta=stop, usage={"input_tokens": 20, "output_tokens": 5}))
    return b"".join([*events, test_anthropic.event("message_stop")])


def messages_relay(citations: Citations = CITATIONS) -> CitationRelay:
    return CitationRelay(MessagesRelay(Renamer(test_anthropic.VOICE)), MessagesCiter(citations))


@given(cuts=st.lists(st.integers(0, len(message_stream(PIECES))), max_size=12))
def test_a_message_stream_cites_before_its_block_ends(cuts: list[int]) -> None:
    relay = messages_relay()
    payloads = [data_of(sent) for sent in feed(relay, message_stream(PIECES), cuts)]
    assert [payload["type"] for payload in payloads[-6:]] == [
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    cited = [payload["delta"] for payload in payloads[-6:-3]]
    assert cited == [{"type": "citations_delta", "citation": location(index)} for index in (0, 2, 3)]
    assert used(payloads[-2]["citations"]) == USED
    counted = relay.counted()
    assert counted is not None
    assert counted.completion_tokens == 5


def test_two_blocks_of_a_message_have_their_own_citations() -> None:
    stream = message_stream(["It is 45 days."], ["The cat is ", "Marmalade."])
    payloads = [data_of(sent) for sent in feed(messages_relay(), stream)]
    cited = [each for each in payloads if each.get("delta", {}).get("type") == "citations_delta"]
    assert [(each["index"], each["delta"]["citation"]) for each in cited] == [(0, location(0)), (1, location(3))]
    assert used(payloads[-2]["citations"]) == [True, False, False, True]


def test_a_message_stream_without_passages_is_passed_on_with_an_empty_list() -> None:
    whole = b"".join(test_anthropic.stream())
    events = feed(messages_relay(NO_CITATIONS), whole)
    plain = MessagesRelay(Renamer(test_anthropic.VOICE)).feed(whole).split(b"\n\n")[:-1]
    assert [sent for sent in events if b"message_delta" not in sent] == [
        sent for sent in plain if b"message_delta" not in sent
    ]
    assert data_of(events[-2])["citations"] == []


TEXT = "Within 45 days of delivery."


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "q"}]},
            {"model": DIGESTS[3], "choices": [{"index": 0, "message": {"content": TEXT, "annotations": None}}]},
        ),
        (
            "/v1/responses",
            {"input": "q"},
            response_object([{"type": "message", "content": [{"type": "output_text", "text": TEXT}]}]),
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "q"}], "max_tokens": 9},
            test_anthropic.message(content=[{"type": "text", "text": TEXT}]),
        ),
    ],
)
async def test_whole_answers_of_each_door(path: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
    made = World(hook=hook(Told(RETURNS, ORDERS)))
    made.engine.chunks = [orjson.dumps(answer)]
    got = await made.ask(path, {"model": "voice", **body, "grounding": {"vector_store_ids": ["vs_a"]}})
    assert got.status == 200
    parsed = got.json()
    assert [(each["id"], each["used"]) for each in parsed["citations"]] == [("p-1", True), ("p-2", False)]
    assert got.headers["x-hatrack-citations"] == "p-1,p-2"
    assert b"returns.md" in orjson.dumps(made.engine.last.body)
    annotation = {**FILE, "index": len(TEXT)}
    if path == "/v1/chat/completions":
        assert parsed["choices"][0]["message"]["annotations"] == []
    elif path == "/v1/responses":
        assert parsed["output"][0]["content"][0]["annotations"] == [annotation]
    else:
        assert parsed["content"][0]["citations"] == [location(0)]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("system", "Cite as [1]."), ("user", "How long?")], True),
        ([("user", "How long? Cite as [n].")], True),
        ([("user", "Cite as [1]."), ("assistant", "Aye."), ("user", "How long?")], False),
        ([("user", "My log says [1]."), ("assistant", "So?"), ("user", "sys.argv[1] is empty. How long?")], False),
    ],
)
async def test_instructions_and_the_question_ask_for_markers_and_nothing_else(
    messages: list[tuple[str, str]], expected: bool
) -> None:
    made = World(hook=hook(Told(RETURNS, ORDERS)))
    made.engine.chunks = [completion("Aye, the second [2].")]
    asked = [{"role": role, "content": text} for role, text in messages]
    got = await made.ask(
        "/v1/chat/completions", {"model": "voice", "messages": asked, "grounding": {"vector_store_ids": ["vs_a"]}}
    )
    assert used(got.json()["citations"]) == [False, expected]
