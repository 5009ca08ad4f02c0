"""In the API server: a fault found by the containment reaches the client with a code of its own.

vLLM knows one kind of failed generation, ``finish_reason == "error"``, and answers it with a bare "Internal server
error". The containment names the fault in ``stop_reason``. Here it becomes the ``type`` of the error in the JSON body
(status 500) and in the SSE error event, so that the gateway need not read prose. The routes of OpenAI's Responses and
Anthropic's Messages lose it in three places of their own; these are patched in the API server alone, which has their
modules loaded anyway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import GenerationError
from vllm.v1.engine.output_processor import RequestState

from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, ENGINE_NOT_FINITE, FAULT_CODES
from service.engine.plugin.guard import expect, is_ours, ours

MESSAGES = {
    ADAPTER_NOT_FINITE: "The adapter's activations are not finite for this request; nothing was generated from them.",
    ADAPTER_UNLOADABLE: "The adapter's files can no longer be read from the store.",
    ENGINE_NOT_FINITE: "The base model's activations are not finite; the engine needs a restart.",
}


CHAT_ERROR = 'data: {"error"'
"""How the error event of vLLM's chat stream begins, from which the Messages are made."""


class FaultReason(str):
    """The finish reason ``"error"`` that also knows which fault it was."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str) -> FaultReason:
        reason = super().__new__(cls, "error")
        reason.code = code
        return reason


class AdapterFault(GenerationError):  # type: ignore[misc]
    """A generation that the containment ended."""

    def __init__(self, code: str) -> None:
        super().__init__(MESSAGES[code])
        self.code = code


class FailedStream(Exception):
    """Carries a failed generation's error, JSON, out of the code that would misread it."""

    def __init__(self, body: str) -> None:
        super().__init__("the generation failed")
        self.body = body


async def fault_handler(request: Any, error: Exception) -> Any:
    """The HTTP answer of a fault, in vLLM's shape of an error."""
    from starlette.responses import JSONResponse

    if not isinstance(error, AdapterFault):
        raise error
    status = int(error.status_code)
    body = {"error": {"message": str(error), "type": error.code, "param": None, "code": status}}
    return JSONResponse(body, status_code=status)


def install() -> None:
    """Patch the places where a finished request is turned into an answer.

    Raises:
        PluginError: One of them is not as expected.
    """
    make_output = expect(RequestState, "_new_completion_output", "self", "token_ids", "finish_reason", "stop_reason")
    raise_if_error = expect(GenerateBaseServing, "_raise_if_error", "self", "finish_reason", "request_id")
    convert = expect(GenerateBaseServing, "_convert_generation_error_to_streaming_response", "self", "e")
    expect(GenerateBaseServing, "create_streaming_error_response", "self", "message", "err_type", "status_code")
    if is_ours(make_output):
        return

    def new_completion_output(self: Any, token_ids: Any, finish_reason: Any, stop_reason: Any) -> Any:
        output = make_output(self, token_ids, finish_reason, stop_reason)
        if stop_reason in FAULT_CODES and output.finish_reason == "error":
            output.finish_reason = FaultReason(stop_reason)
        return output

    def raise_fault(self: Any, finish_reason: Any, request_id: str) -> None:
        if isinstance(finish_reason, FaultReason):
            raise AdapterFault(finish_reason.code)
        raise_if_error(self, finish_reason, request_id)

    def to_event(self: Any, e: Any) -> Any:
        if isinstance(e, AdapterFault):
            return self.create_streaming_error_response(str(e), err_type=e.code, status_code=e.status_code)
        return convert(self, e)

    RequestState._new_completion_output = ours(new_completion_output)
    GenerateBaseServing._raise_if_error = ours(raise_fault)
    GenerateBaseServing._convert_generation_error_to_streaming_response = ours(to_event)


def install_doors() -> None:
    """Patch the routes `/v1/responses` and `/v1/messages`; for the API server alone, which has imported them anyway.

    Raises:
        PluginError: One of the patched places is not as expected.
    """
    from vllm.entrypoints.anthropic import api_router as messages
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    _install_responses(responses, OpenAIServingResponses)
    _install_messages(messages, AnthropicServingMessages)


def _install_responses(router: Any, serving: Any) -> None:
    """A failed stream ends in an error event; vLLM takes its own error for one of OpenAI's events, and breaks off."""
    convert = expect(serving, "_convert_generation_error_to_streaming_response", "self", "e")
    to_events = expect(router, "_convert_stream_to_sse_events", "generator")
    if is_ours(to_events):
        return

    def pass_on(self: Any, e: Any) -> Any:
        raise FailedStream(convert(self, e)) from e

    async def events(generator: Any) -> AsyncIterator[str]:
        try:
            async for event in to_events(generator):
                yield event
        except FailedStream as failed:
            yield error_event(failed.body)

    serving._convert_generation_error_to_streaming_response = ours(pass_on)
    router._convert_stream_to_sse_events = ours(events)


def _install_messages(router: Any, serving: Any) -> None:
    """An error keeps its type and its parameter, in an answer as in a stream; vLLM keeps neither."""
    expect(router, "translate_error_response", "response")
    create = expect(serving, "create_messages", "self", "request", "raw_request")
    convert = expect(serving, "message_stream_converter", "self", "generator")
    expect(serving, "create_error_response", "message", "err_type", "status_code")
    if is_ours(create):
        return

    async def create_messages(self: Any, request: Any, raw_request: Any = None) -> Any:
        try:
            return await create(self, request, raw_request)
        except AdapterFault as fault:
            return self.create_error_response(str(fault), err_type=fault.code, status_code=fault.status_code)

    async def to_events(self: Any, generator: Any) -> AsyncIterator[str]:
        failed: list[str] = []

        async def until_error() -> AsyncIterator[str]:
            async for item in generator:
                if item.startswith(CHAT_ERROR):
                    failed.append(item.removeprefix("data: ").strip())
                    return
                yield item

        async for event in convert(self, until_error()):
            yield event
        if failed:
            yield error_event(failed[0])

    router.translate_error_response = ours(whole_error)
    serving.create_messages = ours(create_messages)
    serving.message_stream_converter = ours(to_events)


def whole_error(response: Any) -> Any:
    """vLLM's error as the answer of its Messages route, with the name of the parameter at fault."""
    from starlette.responses import JSONResponse

    error = response.error
    body = {"type": "error", "error": {"type": error.type, "message": error.message, "param": error.param}}
    return JSONResponse(body, status_code=error.code)


def error_event(body: str) -> str:
    """The event that ends a failed stream of named events; ``body`` is vLLM's error, JSON in one line."""
    return f"event: error\ndata: {body}\n\n"
