"""A tool call that was cut reaches the caller as a call, with the arguments so far, on every route.

vLLM's own serving code and parsers run here without an engine: the test says what a model writes, and where it is cut.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.plugin import guard

pytest.importorskip("vllm")
pytestmark = pytest.mark.filterwarnings("ignore")  # of what vLLM imports

MARKS = ("<tool", "call>", "<function", '"arguments"', '"name"')
FIRST = '<tool_call>\n{"name": "track", "arguments": {"carrier": "dhl", "parcel": "7"}}\n</tool_call>'
BEGUN = '<tool_call>\n{"name": "track", "arguments": {"parcel": "7", "carrier": "dh'
SECOND = FIRST + '\n<tool_call>\n{"name": "cancel", "arguments": {"parcel'
TALK = [{"role": "user", "content": "Where is my parcel 7? Then cancel it."}]
SCHEMA = {"type": "object", "properties": {"carrier": {"type": "string"}, "parcel": {"type": "string"}}}
NAMES = ("track", "cancel")
NAMED = {"type": "function", "function": {"name": "track"}}


@dataclass(frozen=True)
class Cut:
    """What a model wrote until it was cut, and what a caller gets of it."""

    text: str
    choice: Any
    content: str
    calls: list[tuple[str, str]]


CUTS = {
    "in the arguments, required": Cut(BEGUN, "required", "", [("track", '{"parcel": "7", "carrier": "dh')]),
    "in the arguments, named": Cut(BEGUN, NAMED, "", [("track", '{"parcel": "7", "carrier": "dh')]),
    "in the arguments, by the model's own choice": Cut(
        "One moment." + BEGUN, "auto", "One moment.", [("track", '{"parcel": "7", "carrier": "dh')]
    ),
    "in the second call": Cut(
        SECOND, "required", "", [("track", '{"carrier": "dhl", "parcel": "7"}'), ("cancel", '{"parcel')]
    ),
    "in the mark that ends it": Cut(FIRST[:-4], "auto", "", [("track", '{"carrier": "dhl", "parcel": "7"}')]),
    "before the mark that ends it": Cut(FIRST[:-12], "auto", "", [("track", '{"carrier": "dhl", "parcel": "7"}')]),
    "before the name, named": Cut('<tool_call>\n{"na', NAMED, "", [("track", "")]),
    "in the mark that begins it, named": Cut("<tool", NAMED, "", [("track", "")]),
    "behind the name, required": Cut('<tool_call>\n{"name": "track"', "required", "", [("track", "")]),
    "behind the name, named": Cut('<tool_call>\n{"name": "track", "argu', NAMED, "", [("track", "")]),
    "before the name, of two": Cut('<tool_call>\n{"na', "required", "", []),
    "before the name, by the model's own choice": Cut('Hi.<tool_call>\n{"na', "auto", "Hi.", []),
    "in the mark, by the model's own choice": Cut("Hi. <tool_c", "auto", "Hi. ", []),
    "in a text": Cut("Hi. Your parc", "auto", "Hi. Your parc", []),
}
every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())


class Tokenizer:
    """The parser of this template only asks for its presence."""


@pytest.fixture(scope="module")
def serving() -> Any:
    """vLLM's three handlers as the plugin patches them; copies, so that no other test meets the patches."""
    from vllm.entrypoints.anthropic import api_router
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.parser.parser_manager import ParserManager

    from service.engine.plugin import answers, cut_calls

    copies: dict[str, Any] = {}
    for name, owner in {"chat": OpenAIServingChat, "responses": OpenAIServingResponses}.items():
        copies[name] = type(owner.__name__, (owner,), dict(vars(owner)))
    messages = type("Messages", (copies["chat"],), dict(vars(AnthropicServingMessages)))
    cut_calls._install_chat(copies["chat"])
    cut_calls._install_responses(copies["responses"])
    answers._install_messages(SimpleNamespace(translate_error_response=api_router.translate_error_response), messages)
    parser = ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True)
    common = {
        "_effective_chat_template_kwargs": lambda _request: {},
        "_include_reasoning_tokens_details": False,
        "enable_auto_tools": True,
        "enable_force_include_usage": False,
        "enable_log_outputs": False,
        "enable_per_request_metrics": False,
        "enable_prompt_tokens_details": False,
        "model_config": None,
        "parser": parser,
        "parser_cls": parser,
        "renderer": SimpleNamespace(tokenizer=Tokenizer()),
        "request_logger": None,
        "response_role": "assistant",
        "system_fingerprint": None,
        "tool_server": None,
        "use_harmony": False,
    }
    made = {name: owner.__new__(owner) for name, owner in {**copies, "messages": messages}.items()}
    for handler in made.values():
        handler.__dict__.update(common)
    return SimpleNamespace(**made)


@pytest.fixture
def custom_input() -> Iterator[None]:
    """vLLM's two modules with the patch, for one test."""
    from vllm.entrypoints.openai.responses import streaming_events, utils

    from service.engine.plugin.cut_calls import _install_custom_input

    own = utils.decode_custom_tool_input
    _install_custom_input(utils, streaming_events)
    yield
    utils.decode_custom_tool_input = streaming_events.decode_custom_tool_input = own


def output(text: str, finish: str | None, stop: str | None, index: int = 0) -> Any:
    from vllm.outputs import CompletionOutput

    return CompletionOutput(
        index=index,
        text=text,
        token_ids=[5] * len(text),
        cumulative_logprob=None,
        logprobs=None,
        finish_reason=finish,
        stop_reason=stop,
    )


async def results(*texts: str, finish: str = "length", stop: str | None = None, n: int = 1) -> AsyncIterator[Any]:
    """The engine's results: one if it is the whole answer, otherwise a piece each."""
    from vllm.outputs import RequestOutput

    for number, text in enumerate(texts, start=1):
        is_last = number == len(texts)
        yield RequestOutput(
            request_id="r",
            prompt=None,
            prompt_token_ids=[1, 2],
            prompt_logprobs=None,
            outputs=[output(text, finish if is_last else None, stop if is_last else None, index) for index in range(n)],
            finished=is_last,
        )


def pieces(text: str) -> list[str]:
    return [text[start : start + 3] for start in range(0, len(text), 3)]


def chat_request(cut: Cut, **more: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES]
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": TALK, "tools": tools, "tool_choice": cut.choice, **more}
    )


async def chat_answer(handler: Any, cut: Cut, *, finish: str = "length", stop: str | None = None, **more: Any) -> Any:
    request = chat_request(cut, **more)
    parser = handler._make_parser(request, Tokenizer(), {})
    generated = results(cut.text, finish=finish, stop=stop, n=request.n or 1)
    return await handler.chat_completion_full_generator(
        request, generated, "r", "m", TALK, Tokenizer(), SimpleNamespace(), parser=parser
    )


def chat_stream(handler: Any, cut: Cut) -> AsyncIterator[str]:
    request = chat_request(cut, stream=True, stream_options={"include_usage": True})
    stream: AsyncIterator[str] = handler.chat_completion_stream_generator(
        request, results(*pieces(cut.text)), "r", "m", TALK, Tokenizer(), SimpleNamespace(), chat_template_kwargs={}
    )
    return stream


def check_marks(body: str) -> None:
    """Fails where a caller sees the template's marks in a text or in arguments."""
    for mark in MARKS:
        assert json.dumps(mark)[1:-1] not in body.replace('"name":', "").replace('"arguments":', ""), body


# chat completions


@every_cut
@pytest.mark.parametrize("n", [1, 2])
async def test_chat_whole(serving: Any, cut: Cut, n: int) -> None:
    answer = await chat_answer(serving.chat, cut, n=n)
    assert len(answer.choices) == n
    for choice in answer.choices:
        assert choice.finish_reason == "length"
        assert (choice.message.content or "") == cut.content
        calls = choice.message.tool_calls
        assert [(call.function.name, call.function.arguments) for call in calls] == cut.calls
        assert all(call.id for call in calls)
        check_marks(choice.model_dump_json())


@every_cut
async def test_chat_in_a_stream(serving: Any, cut: Cut) -> None:
    content, calls, finish = "", dict[int, list[str]](), None
    async for event in chat_stream(serving.chat, cut):
        if event.startswith("data: {"):
            for choice in json.loads(event[6:])["choices"]:
                content += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls", ()):
                    name_and_arguments = calls.setdefault(call["index"], ["", ""])
                    name_and_arguments[0] += call["function"].get("name", "")
                    name_and_arguments[1] += call["function"].get("arguments") or ""
                finish = choice["finish_reason"] or finish
    assert finish == "length"
    assert (content, [tuple(calls[index]) for index in sorted(calls)]) == (cut.content, cut.calls)


async def test_a_stop_string_cuts_as_the_limit_does(serving: Any) -> None:
    for cut in CUTS.values():
        answer = await chat_answer(serving.chat, cut, finish="stop", stop="\n\n")
        message = answer.choices[0].message
        assert (message.content or "") == cut.content
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == cut.calls


async def test_only_the_first_of_several_calls_where_one_is_allowed(serving: Any) -> None:
    answer = await chat_answer(serving.chat, CUTS["in the second call"], parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["track"]


async def test_an_answer_that_was_not_cut_is_vllms_own(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.engine.plugin import cut_calls

    monkeypatch.setattr(cut_calls, "_read_as_stream", lambda *_args, **_kwargs: pytest.fail("read again"))
    answer = await chat_answer(serving.chat, Cut(FIRST, "auto", "", []), finish="stop")
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"carrier": "dhl", "parcel": "7"}
    without = Cut("Hi. <tool", "none", "", [])
    assert (await chat_answer(serving.chat, without)).choices[0].message.content == "Hi. <tool"


async def test_a_parser_that_cannot_read_it_leaves_the_answer_as_it_is(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise ValueError("not mine")

    monkeypatch.setattr(serving.chat.parser_cls, "parse_delta", fail)
    answer = await chat_answer(serving.chat, CUTS["before the mark that ends it"])
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["track"]
    assert answer.choices[0].finish_reason == "length"


# messages


@every_cut
async def test_messages_whole(serving: Any, cut: Cut) -> None:
    message = serving.messages.messages_full_converter(await chat_answer(serving.messages, cut))
    assert message.stop_reason == "max_tokens"
    text = "".join(block.text for block in message.content if block.type == "text")
    assert text == cut.content
    used = [(block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert used == [(name, complete(arguments)) for name, arguments in cut.calls]
    check_marks(message.model_dump_json(exclude={"type"}))


def complete(arguments: str) -> Any:
    """What Anthropic's own client makes of the arguments that a stream has so far."""
    from jiter import from_json

    return from_json(arguments.encode(), partial_mode=True) if arguments else {}


@every_cut
async def test_messages_in_a_stream(serving: Any, cut: Cut) -> None:
    text, used, stop = "", list[list[str]](), None
    async for event in serving.messages.message_stream_converter(chat_stream(serving.messages, cut)):
        data = json.loads(event.partition("data: ")[2])
        if data["type"] == "content_block_start" and data["content_block"]["type"] == "tool_use":
            used.append([data["content_block"]["name"], ""])
        elif data["type"] == "content_block_delta":
            text += data["delta"].get("text", "")
            if "partial_json" in data["delta"]:
                used[-1][1] += data["delta"]["partial_json"]
        elif data["type"] == "message_delta":
            stop = data["delta"]["stop_reason"]
    assert stop == "max_tokens"
    assert (text, [tuple(call) for call in used]) == (cut.content, cut.calls)


async def test_a_message_whose_call_a_stop_string_cut_does_not_ask_to_run_it(serving: Any) -> None:
    cut = CUTS["in the arguments, required"]
    message = serving.messages.messages_full_converter(
        await chat_answer(serving.messages, cut, finish="stop", stop="l")
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "l")
    assert message.content[0].input == {"parcel": "7"}
    whole = await chat_answer(serving.messages, Cut(FIRST, "required", "", []), finish="stop")
    assert serving.messages.messages_full_converter(whole).stop_reason == "tool_use"


# responses


def responses_request(choice: Any, **more: Any) -> Any:
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    tools = [{"type": "function", "name": name, "parameters": SCHEMA} for name in NAMES]
    choice = {"type": "function", "name": "track"} if choice is NAMED else choice
    return ResponsesRequest.model_validate(
        {"model": "m", "input": "Hi", "tools": tools, "tool_choice": choice, "store": False, **more}
    )


async def respond(handler: Any, request: Any, *texts: str, finish: str = "length") -> Any:
    """The response, or its stream's events."""
    from vllm.entrypoints.openai.responses.context import SimpleContext
    from vllm.sampling_params import SamplingParams

    parser = handler._make_response_parser(request, Tokenizer(), {})
    context = SimpleContext(response_parser=parser)

    async def contexts() -> AsyncIterator[Any]:
        async for result in results(*texts, finish=finish):
            context.append_output(result)
            yield context

    arguments = (request, SamplingParams(max_tokens=9), contexts(), context, "m", Tokenizer(), SimpleNamespace())
    if not request.stream:
        return await handler.responses_full_generator(*arguments)
    return [event async for event in handler.responses_stream_generator(*arguments)]


def check_items(items: list[Any], cut: Cut) -> None:
    text = "".join(part.text for item in items if item.type == "message" for part in item.content)
    calls = [(item.name, item.arguments) for item in items if item.type == "function_call"]
    assert (text, calls) == (cut.content, cut.calls)
    assert [item.status for item in items] == ["completed"] * (len(items) - 1) + ["incomplete"] * bool(items)


@every_cut
async def test_responses_whole(serving: Any, cut: Cut) -> None:
    response = await respond(serving.responses, responses_request(cut.choice), cut.text)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    check_items(response.output, cut)


@every_cut
async def test_responses_in_a_stream(serving: Any, cut: Cut) -> None:
    request = responses_request(cut.choice, stream=True)
    events = await respond(serving.responses, request, *pieces(cut.text))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.status == "incomplete"
    check_items(events[-1].response.output, cut)
    check_items([event.item for event in events if event.type == "response.output_item.done"], cut)
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert arguments == "".join(arguments for _, arguments in cut.calls)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_item_that_is_complete_says_so(serving: Any, stream: bool) -> None:
    answer = await respond(serving.responses, responses_request("auto", stream=stream), FIRST, finish="stop")
    [item] = answer[-1].response.output if stream else answer.output
    assert item.status == "completed"


@pytest.mark.usefixtures("custom_input")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("written", "text"), [('{"input": "SELECT \\"na', 'SELECT "na'), ('{"inp', ""), ("", "")])
async def test_a_custom_tools_text_comes_without_the_json_around_it(
    serving: Any, stream: bool, written: str, text: str
) -> None:
    tools = [{"type": "custom", "name": "query"}]
    request = responses_request("required", tools=tools, stream=stream)
    begun = '<tool_call>\n{"name": "query", "arguments": ' + written
    answer = await respond(serving.responses, request, *(pieces(begun) if stream else [begun]))
    [item] = answer[-1].response.output if stream else answer.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "query", text)


def test_another_vllm_is_refused() -> None:
    from service.engine.plugin import cut_calls

    class Other:
        async def chat_completion_full_generator(self, request: Any) -> None: ...

    with pytest.raises(guard.PluginError, match="chat_completion_full_generator"):
        cut_calls._install_chat(Other)
