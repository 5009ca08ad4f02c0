"""In the API server: a tool call that was cut, by `max_tokens` or a stop string, is still a tool call.

vLLM reads a whole answer's calls with the tool parser's method for complete text. Where the last call is cut, that
returns the template's marks as the answer's text, or drops the arguments, and the calls before it with them. The
method for streams returns each call with the arguments so far: a cut whole answer is read by that one, too, in one
piece. Only cut answers to requests with tools are; all others are left to vLLM.

The Responses give the item that was cut the status `incomplete`, and a custom tool's input without the JSON around it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json
from vllm.logger import init_logger

from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

logger = init_logger("vllm.hatrack.cut_calls")


def install_api_routes() -> None:
    """Patch the chat completions, from which the Messages are made, and the Responses; for the API server alone.

    Raises:
        PluginError: One of the patched places is not as expected.
    """
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.responses import streaming_events, utils
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.tool_parsers.abstract_tool_parser import ToolParser

    checked_attribute(ToolParser, "get_remaining_unstreamed_args", "self")
    _install_chat(OpenAIServingChat)
    _install_responses(OpenAIServingResponses)
    _install_custom_input(utils, streaming_events)


def _install_chat(serving: Any) -> None:
    generate = checked_attribute(
        serving, "chat_completion_full_generator", "self", "request", "result_generator", "request_id"
    )
    make_parser = checked_attribute(serving, "_make_parser", "self", "request", "tokenizer", "chat_template_kwargs")
    checked_attribute(serving, "_effective_chat_template_kwargs", "self", "request")
    if is_patched(generate):
        return

    def forced_parser(self: Any, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        return _begin_forced_call(make_parser(self, request, tokenizer, chat_template_kwargs), request)

    async def whole_answer(self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any) -> Any:
        if self.parser_cls is None or not _may_call(request):
            return await generate(self, request, result_generator, *args, **kwargs)
        result: Any = None

        async def results() -> AsyncIterator[Any]:
            nonlocal result
            async for result in result_generator:
                yield result

        answer = await generate(self, request, results(), *args, **kwargs)
        choices = getattr(answer, "choices", ())  # an error has none
        for choice, output in zip(choices, result.outputs if choices else (), strict=True):
            if not is_cut(output):
                continue
            if output.finish_reason == "length":
                choice.finish_reason = "length"
            template_kwargs = self._effective_chat_template_kwargs(request)
            parser = self._make_parser(request, self.renderer.tokenizer, template_kwargs)
            whole = choice.message.tool_calls
            streamed = _read_as_stream(parser, output, request, result.prompt_token_ids, at_least=len(whole))
            if streamed is not None:
                content, calls = streamed
                choice.message.content = content or (None if calls else "")
                choice.message.tool_calls = _chat_calls(calls)
        return answer

    serving._make_parser = mark_patched(forced_parser)
    serving.chat_completion_full_generator = mark_patched(whole_answer)


def _install_responses(serving: Any) -> None:
    make_items = checked_attribute(
        serving, "_make_response_output_items", "self", "request", "final_output", "tokenizer", "parser"
    )
    make_parser = checked_attribute(
        serving, "_make_response_parser", "self", "request", "tokenizer", "chat_template_kwargs"
    )
    stream = checked_attribute(serving, "responses_stream_generator", "self", "request")
    checked_attribute(serving, "_effective_chat_template_kwargs", "self", "request")
    if is_patched(make_items):
        return

    def forced_parser(self: Any, request: Any, tokenizer: Any, chat_template_kwargs: Any) -> Any:
        parser = make_parser(self, request, tokenizer, chat_template_kwargs)
        return parser if parser is None else _begin_forced_call(parser, request)

    def items(self: Any, request: Any, final_output: Any, tokenizer: Any, parser: Any = None) -> Any:
        if parser is not None and is_cut(final_output) and _may_call(request):
            fresh = self._make_response_parser(request, tokenizer, self._effective_chat_template_kwargs(request))
            parser = _CutAnswerParser(parser, fresh, final_output)
        made = make_items(self, request, final_output, tokenizer, parser)
        if final_output.finish_reason == "length" and made:
            _mark_incomplete(made[-1])
        return made

    async def events(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        done: Any = None  # an item's end, until it is known whether the response ends with it; that follows at once
        async for event in stream(self, request, *args, **kwargs):
            if done is not None:
                if event.type == "response.completed" and event.response.status == "incomplete":
                    _mark_incomplete(done.item)  # the same object stands in the response
                yield done
                done = None
            if event.type == "response.output_item.done":
                done = event
            else:
                yield event
        if done is not None:
            yield done

    serving._make_response_parser = mark_patched(forced_parser)
    serving._make_response_output_items = mark_patched(items)
    serving.responses_stream_generator = mark_patched(events)


def _install_custom_input(utils: Any, streaming_events: Any) -> None:
    """A custom tool's text is wrapped in JSON for the model; vLLM unwraps it only where that JSON is complete."""
    decode = checked_attribute(utils, "decode_custom_tool_input", "arguments")
    decode_prefix = checked_attribute(utils, "decode_custom_tool_input_prefix", "arguments")
    key = checked_attribute(utils, "CUSTOM_TOOL_INPUT_KEY")
    checked_attribute(streaming_events, "decode_custom_tool_input", "arguments")
    if is_patched(decode):
        return

    def decode_cut(arguments: str) -> Any:
        partial = None if _is_json(arguments) else _partial_object(arguments)
        if partial is None or not partial.keys() <= {key}:
            return decode(arguments)
        return decode_prefix(arguments)

    utils.decode_custom_tool_input = streaming_events.decode_custom_tool_input = mark_patched(decode_cut)


class _CutAnswerParser:
    """Stands in for a request's parser: reads its one answer, which was cut, as a stream of it would be read."""

    def __init__(self, parser: Any, fresh: Any, output: Any) -> None:
        """``fresh``: Another parser of the same request: to read whole text may leave traces in the first."""
        self._parser, self._fresh, self._output = parser, fresh, output

    def parse(self, text: str, request: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        reasoning, content, calls = self._parser.parse(text, request, **kwargs)
        streamed = _read_as_stream(self._fresh, self._output, request, (), at_least=len(calls or ()))
        return (reasoning, content, calls) if streamed is None else (reasoning, *streamed)


def is_cut(output: Any) -> bool:
    """Whether a generation, or a choice of an answer, ended where the model would have gone on."""
    return output.finish_reason == "length" or isinstance(output.stop_reason, str)


def close_arguments(answer: Any) -> bool:
    """Complete the arguments of a cut call, in place, as Anthropic's client reads those of a stream: without the value
    that was begun.

    Args:
        answer: A chat completion with one choice.

    Returns:
        Whether there was such a call.
    """
    [choice] = answer.choices
    closed = False
    for call in choice.message.tool_calls if is_cut(choice) else ():
        if not _is_json(call.function.arguments):
            call.function.arguments = json.dumps(_partial_object(call.function.arguments) or {}, ensure_ascii=False)
            closed = True
    return closed


def _may_call(request: Any) -> bool:
    return bool(request.tools) and request.tool_choice != "none"


def _begin_forced_call(parser: Any, request: Any) -> Any:
    """The parser of a request; where it forces a call of only one function, its streams have that call even if they end
    before its name."""
    if request.tools and (request.tool_choice == "required" or not isinstance(request.tool_choice, str | None)):
        _invent_no_arguments(parser)
    name = _forced_name(request)
    if name is None:
        return parser
    parse_delta, has_begun = parser.parse_delta, False

    def parse(*args: Any, finished: bool, **kwargs: Any) -> Any:
        nonlocal has_begun
        delta = parse_delta(*args, finished=finished, **kwargs)
        has_begun = has_begun or bool(delta is not None and delta.tool_calls)
        if not finished or has_begun:
            return delta
        return _with_empty_call(delta, name)

    parser.parse_delta = parse
    return parser


def _invent_no_arguments(parser: Any) -> None:
    """Leave a call that ends with its name without arguments; vLLM adds an empty object, with which it could be run.

    For calls that are known to have arguments: a forced one has them as soon as it is whole.
    """
    tool_parser = parser.tool_parser
    if tool_parser is None:
        return
    remaining = tool_parser.get_remaining_unstreamed_args

    def remaining_so_far() -> Any:
        calls = tool_parser.prev_tool_call_arr
        return "" if calls and "arguments" not in calls[-1] else remaining()

    tool_parser.get_remaining_unstreamed_args = remaining_so_far


def _forced_name(request: Any) -> str | None:
    """The name of the function that the request forces; None: none, or any of several."""
    choice = request.tool_choice
    if choice == "required" and len(request.tools or ()) == 1:
        choice = request.tools[0]
    name = getattr(getattr(choice, "function", choice), "name", None)  # chat completions put it a level deeper
    return name if isinstance(name, str) else None


def _with_empty_call(delta: Any, name: str) -> Any:
    from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
    from vllm.renderers.chat_utils import make_tool_call_id

    delta = DeltaMessage() if delta is None else delta
    function = DeltaFunctionCall(name=name, arguments="")
    delta.tool_calls = [DeltaToolCall(id=make_tool_call_id(), type="function", index=0, function=function)]
    return delta


def _read_as_stream(
    parser: Any, output: Any, request: Any, prompt_token_ids: Any, *, at_least: int
) -> tuple[str, list[Any]] | None:
    """Text and calls of an answer, as its stream would have had them.

    Returns:
        None: The parser fails at it, or finds fewer than ``at_least`` calls.
    """
    from vllm.entrypoints.generate.base.protocol import FunctionCall
    from vllm.entrypoints.serve.utils.tool_calls_utils import maybe_filter_parallel_tool_calls

    _invent_no_arguments(parser)
    try:
        delta = parser.parse_delta(
            output.text, list(output.token_ids), request, prompt_token_ids=list(prompt_token_ids or ()), finished=True
        )
    except Exception:  # whatever one of vLLM's forty parsers raises: the whole answer is what it was
        logger.exception("a cut answer cannot be read as a stream")
        return None
    calls: dict[int, Any] = {}
    for part in () if delta is None else delta.tool_calls:
        call = calls.setdefault(part.index, FunctionCall(name="", arguments=""))
        call.id = call.id or part.id
        if part.function is not None:
            call.name += part.function.name or ""
            call.arguments += part.function.arguments or ""
    if len(calls) < at_least:
        return None
    content = "" if delta is None else delta.content or ""
    if calls and not content.strip():  # as vLLM leaves it out beside whole calls
        content = ""
    in_order = [calls[index] for index in sorted(calls)]
    return content, maybe_filter_parallel_tool_calls(in_order, request)


def _chat_calls(calls: list[Any]) -> list[Any]:
    from vllm.entrypoints.generate.base.protocol import ToolCall
    from vllm.renderers.chat_utils import make_tool_call_id

    return [ToolCall(id=call.id or make_tool_call_id(), function=call) for call in calls]


def _mark_incomplete(item: Any) -> None:
    if hasattr(item, "status"):  # a custom tool's call has none
        item.status = "incomplete"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _partial_object(text: str) -> dict[str, Any] | None:
    """The object that a text begins, without a string or word that was begun; None: it begins none."""
    try:
        value = from_json(text, allow_partial=True)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
