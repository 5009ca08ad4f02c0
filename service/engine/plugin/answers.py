"""In the API server: a fault found by the containment reaches the client with a code of its own.

vLLM knows one kind of failed generation, ``finish_reason == "error"``, and answers it with a bare "Internal server
error". The containment names the fault in ``stop_reason``. Here it becomes the ``type`` of the error in the JSON body
(status 500) and in the SSE error event, so that the gateway need not read prose.
"""

from __future__ import annotations

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
