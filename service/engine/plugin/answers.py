"""In the API server: a fault found by the containment reaches the client with a code of its own.

vLLM knows one kind of failed generation, ``finish_reason == "error"``, and answers it with a bare "Internal server
error". The containment names the fault in ``stop_reason``. Here it becomes the ``type`` of the error in the JSON body
(status 500) and in the SSE error event, so that the gateway need not read prose. The routes of OpenAI's Responses and
Anthropic's Messages lose it in three places of their own; these are patched in the API server alone, which has their
modules loaded anyway.

Here it is also told apart whose fault an error is. vLLM answers 500 where a conversation makes the code break that
prepares it for the model, and 400, with pydantic's words, where what the model has written does not fit the answer's
form. The first is the caller's fault, the second is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import GenerationError, VLLMError, VLLMServerError, VLLMValidationError
from vllm.logger import init_logger
from vllm.renderers.base import BaseRenderer
from vllm.v1.engine.output_processor import RequestState

from service.engine.contract import ADAPTER_NOT_FINITE, ADAPTER_UNLOADABLE, ENGINE_NOT_FINITE, FAULT_CODES
from service.engine.plugin.cut_calls import close_arguments
from service.engine.plugin.guard import checked_attribute, is_patched, mark_patched

logger = init_logger("vllm.hatrack.answers")

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
    make_output = checked_attribute(
        RequestState, "_new_completion_output", "self", "token_ids", "finish_reason", "stop_reason"
    )
    raise_if_error = checked_attribute(GenerateBaseServing, "_raise_if_error", "self", "finish_reason", "request_id")
    convert = checked_attribute(GenerateBaseServing, "_convert_generation_error_to_streaming_response", "self", "e")
    checked_attribute(
        GenerateBaseServing, "create_streaming_error_response", "self", "message", "err_type", "status_code"
    )
    if is_patched(make_output):
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

    RequestState._new_completion_output = mark_patched(new_completion_output)
    GenerateBaseServing._raise_if_error = mark_patched(raise_fault)
    GenerateBaseServing._convert_generation_error_to_streaming_response = mark_patched(to_event)


def install_api_routes() -> None:
    """Patch the routes `/v1/responses` and `/v1/messages`; for the API server alone, which has imported them anyway.

    Raises:
        PluginError: One of the patched places is not as expected.
    """
    from vllm.entrypoints.anthropic import api_router as messages
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    _install_rendering()
    _install_responses(responses, OpenAIServingResponses)
    _install_messages(messages, AnthropicServingMessages)


async def unreadable_handler(request: Any, error: Exception) -> Any:
    """The HTTP answer to a request that vLLM cannot turn into one of its own: the type of its other such answers."""
    from starlette.responses import JSONResponse

    body = {"error": {"message": "The request is not as expected.", "type": "Bad Request", "param": None, "code": 400}}
    return JSONResponse(body, status_code=400)


def _install_rendering() -> None:
    """A conversation that cannot be prepared for the model is refused; where the code breaks, vLLM says 500 or 501."""
    render = checked_attribute(BaseRenderer, "render_chat_async", "self", "conversations")
    checked_attribute(BaseRenderer, "tokenize_prompts_async", "self", "prompts", "params")
    checked_attribute(BaseRenderer, "tokenize_prompt_async", "self", "prompt", "params")
    if is_patched(render):
        return

    async def tokenize_in_turn(self: Any, prompts: Any, params: Any) -> Any:
        # at once they would take every thread that tokenizes, and everybody's next prompt would wait behind the last
        return [await self.tokenize_prompt_async(prompt, params) for prompt in prompts]

    async def render_chat(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await render(self, *args, **kwargs)
        except (VLLMError, TimeoutError):
            raise
        except Exception as error:
            if isinstance(error, ValueError) and not isinstance(error, ValidationError | UnicodeError):
                raise  # vLLM's own words for a caller, such as that the model takes no images
            logger.warning("a conversation cannot be prepared for the model: %r", error)
            raise VLLMValidationError(
                "The conversation cannot be prepared for the model.", parameter="messages"
            ) from error

    BaseRenderer.render_chat_async = mark_patched(render_chat)
    BaseRenderer.tokenize_prompts_async = mark_patched(tokenize_in_turn)


def _install_responses(router: Any, serving: Any) -> None:
    """A failed stream ends in an error event; vLLM takes its own error for one of OpenAI's events, and breaks off."""
    convert = checked_attribute(serving, "_convert_generation_error_to_streaming_response", "self", "e")
    to_events = checked_attribute(router, "_convert_stream_to_sse_events", "generator")
    if is_patched(to_events):
        return

    def pass_on(self: Any, e: Any) -> Any:
        raise FailedStream(convert(self, e)) from e

    async def events(generator: Any) -> AsyncIterator[str]:
        try:
            async for event in to_events(generator):
                yield event
        except FailedStream as failed:
            yield error_event(failed.body)

    serving._convert_generation_error_to_streaming_response = mark_patched(pass_on)
    router._convert_stream_to_sse_events = mark_patched(events)


def _install_messages(router: Any, serving: Any) -> None:
    """An error keeps its type and its parameter, in an answer as in a stream; vLLM keeps neither."""
    checked_attribute(router, "translate_error_response", "response")
    create = checked_attribute(serving, "create_messages", "self", "request", "raw_request")
    convert = checked_attribute(serving, "message_stream_converter", "self", "generator")
    checked_attribute(serving, "create_error_response", "message", "err_type", "status_code")
    to_message = checked_attribute(serving, "messages_full_converter", "self", "generator")
    if is_patched(create):
        return

    def full_message(self: Any, generator: Any) -> Any:
        try:
            is_cut_short = close_arguments(generator)
            message = to_message(self, generator)
        except Exception as error:
            raise VLLMServerError("The model's answer does not fit a message's form.") from error
        if is_cut_short and message.stop_reason == "tool_use":  # by a stop string: such a call must not be run
            message.stop_reason, message.stop_sequence = "stop_sequence", generator.choices[0].stop_reason
        return message

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

    router.translate_error_response = mark_patched(whole_error)
    serving.create_messages = mark_patched(create_messages)
    serving.messages_full_converter = mark_patched(full_message)
    serving.message_stream_converter = mark_patched(to_events)


def whole_error(response: Any) -> Any:
    """vLLM's error as the answer of its Messages route, with the name of the parameter at fault."""
    from starlette.responses import JSONResponse

    error = response.error
    body = {"type": "error", "error": {"type": error.type, "message": error.message, "param": error.param}}
    return JSONResponse(body, status_code=error.code)


def error_event(body: str) -> str:
    """The event that ends a failed stream of named events; ``body`` is vLLM's error, JSON in one line."""
    return f"event: error\ndata: {body}\n\n"
