"""The fields of `POST /v1/responses`, and what its input may hold.

Nothing is stored, so whatever points to something stored is refused; tools that would run on the server are, too, but
for `file_search`, which the gateway itself is.
"""

from __future__ import annotations

from typing import Any

from service.config import Settings
from service.errors import BadRequest, FieldRefused
from service.grounding.fields import check_grounding
from service.grounding.file_search import CALL, FILE_SEARCH, RESULTS, check_call, check_tool
from service.http.checks import (
    INT64,
    Check,
    boolean,
    by_type,
    describe,
    either,
    fields,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    schema_of,
    shaped,
    sized,
    text,
    with_schema,
)
from service.inference.fields import GUARDED, KIB, MAX_TOOLS, FieldRule, Table, dropped, passed, refused
from service.inference.messages import MAX_MESSAGES
from service.inference.tools import bound_arguments, call_arguments, parameters_schema, tool_name
from service.inference.values import (
    MAX_HINT_CHARS,
    MAX_TOKEN_ID,
    logit_bias,
    metadata,
    structured_outputs,
    template_kwargs,
)

STATELESS = "this server does not store responses"
BUILT_IN = "no other tool runs on the server"
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_HINT = text(MAX_HINT_CHARS)
_STATUS = one_of("in_progress", "completed", "incomplete")


def _data_url(value: Any, path: str) -> None:
    text()(value, path)
    if not value.startswith("data:"):
        raise FieldRefused(
            f"`{path}` must be a `data:` URL; got {describe(value)}. The server does not fetch URLs or open files",
            param=path,
        )


def _part(kind: str, field: str, *ignored: str) -> Check:
    return shaped({"type": one_of(kind), field: text()}, required=(field,), dropped=ignored)


_INPUT_PARTS: dict[str, Check] = {
    "input_text": _part("input_text", "text", "prompt_cache_breakpoint"),
    "input_image": shaped(
        {"type": text(), "image_url": _data_url, "detail": one_of("low", "high", "auto", "original")},
        required=("image_url",),
        dropped=("prompt_cache_breakpoint",),
    ),
}
_OUTPUT_PARTS: dict[str, Check] = {
    "output_text": _part("output_text", "text", "annotations", "logprobs"),
    "refusal": _part("refusal", "refusal"),
    "input_text": _INPUT_PARTS["input_text"],
}
_CONTENT = either(
    (str, text()), (list, list_of(by_type(_INPUT_PARTS), min_items=1)), allowed="a string or an array of parts"
)


def _message(value: Any, path: str) -> None:
    one_of("user", "assistant", "system", "developer")(value.get("role"), f"{path}.role")
    is_answer = value["role"] == "assistant"
    parts = list_of(by_type(_OUTPUT_PARTS))
    content = either((str, text()), (list, parts), allowed="a string or an array of parts") if is_answer else _CONTENT
    known = {"type": text(), "role": text(), "content": content, "id": _HINT, "status": _STATUS}
    shaped(known, required=("content",), dropped=("phase",))(value, path)
    if is_answer and isinstance(value["content"], list):
        # the engine reads an answer's first part alone
        joined = "".join(part.get("text") or part.get("refusal") or "" for part in value["content"])
        value["content"] = [{"type": "output_text", "text": joined, "annotations": []}]


def _reasoning(value: Any, path: str) -> None:
    if value.get("encrypted_content") is not None:
        name = f"{path}.encrypted_content"
        raise FieldRefused(f"`{name}` cannot be used: this server cannot decrypt it", param=name)
    summary, content = by_type({"summary_text": _part("summary_text", "text")}), _part("reasoning_text", "text")
    known = {"type": text(), "id": _HINT, "status": _STATUS}
    shaped(
        known | {"summary": list_of(summary), "content": list_of(by_type({"reasoning_text": content}))},
        dropped=("encrypted_content",),
    )(value, path)
    value.setdefault("summary", [])


def _call(payload_field: str, check: Check) -> Check:
    known = {"type": text(), "id": _HINT, "call_id": _HINT, "name": text(256), payload_field: check, "status": _STATUS}
    return shaped(known, required=("call_id", "name", payload_field), dropped=("namespace", "caller"))


_OUTPUT = shaped(
    {"type": text(), "id": _HINT, "call_id": _HINT, "output": _CONTENT, "status": _STATUS},
    required=("call_id", "output"),
    dropped=("caller",),
)
_item = by_type(
    {
        "message": _message,
        "function_call": _call("arguments", call_arguments),
        "function_call_output": _OUTPUT,
        "custom_tool_call": _call("input", text()),
        "custom_tool_call_output": _OUTPUT,
        "reasoning": _reasoning,
        CALL: check_call,
    },
    default="message",
    otherwise=f"{STATELESS}, and {BUILT_IN}",
)
_items = list_of(_item, min_items=1, max_items=MAX_MESSAGES)


def check_input(value: Any, path: str) -> None:
    """Check a text or a list of items and drop null and empty parts, and earlier searches; changes the items in place.

    Raises:
        BadRequest: An item or one of its parts is not well formed.
        FieldRefused: An item stands for something stored, or for a tool that runs on the server; or an image is not
            given as `data:`.
    """
    if isinstance(value, list):
        bound_arguments((item.get("arguments") for item in value if isinstance(item, dict)), path)
    either((str, text()), (list, _items), allowed="a string or an array of items")(value, path)
    if isinstance(value, list):
        value[:] = [item for item in value if item.get("type") != CALL]
        if not value:
            raise BadRequest(f"`{path}` contains no item for the model", param=path)


with_schema(check_input, {"anyOf": [{"type": "string"}, schema_of(_items)]})


_tool = by_type(
    {
        "function": shaped(
            {
                "type": text(),
                "name": tool_name,
                "description": text(),
                "parameters": parameters_schema,
                "strict": boolean,
            },
            required=("name",),
        ),
        "custom": shaped(
            {
                "type": text(),
                "name": tool_name,
                "description": text(),
                "format": by_type({"text": fields({"type": text()})}, otherwise="grammars are not supported"),
            },
            required=("name",),
        ),
        FILE_SEARCH: check_tool,
    },
    otherwise=BUILT_IN,
)


def _tool_choice(value: Any, path: str) -> None:
    if isinstance(value, str):
        return one_of("none", "auto", "required")(value, path)
    named = fields({"type": text(), "name": text(256)}, required=("name",))
    search = fields({"type": text()})
    return by_type({"function": named, "custom": named, FILE_SEARCH: search}, otherwise=BUILT_IN)(value, path)


with_schema(_tool_choice, {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]})


def _text_config(value: Any, path: str) -> None:
    """The answer's format; `verbosity` may only be the one that asks for nothing."""
    schema = {"type": text(), "name": _HINT, "description": text(), "schema": mapping, "strict": boolean}
    form = by_type(
        {
            "text": fields({"type": text()}),
            "json_object": fields({"type": text()}),
            "json_schema": fields(schema, required=("name", "schema")),
        }
    )
    shaped({"format": form, "verbosity": one_of("medium")})(value, path)
    value.pop("verbosity", None)


with_schema(
    _text_config,
    {
        "type": "object",
        "properties": {
            "format": {
                "type": "object",
                "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
                "required": ["type"],
            },
            "verbosity": {"enum": ["medium", None]},
        },
        "additionalProperties": False,
    },
)


def _reasoning_config(value: Any, path: str) -> None:
    """How much to think; a summary may only be `auto`, which promises none."""
    shaped({"effort": one_of(*EFFORTS), "summary": one_of("auto"), "generate_summary": one_of("auto")})(value, path)
    for name in ("summary", "generate_summary"):
        value.pop(name, None)


with_schema(
    _reasoning_config,
    {"type": "object", "properties": {"effort": {"enum": [*EFFORTS, None]}}},
)


def _include(value: Any, path: str) -> None:
    """Log-probabilities, and the passages of a search; encrypted reasoning is asked for by every stateless client, and
    there is none to give."""
    list_of(one_of(LOGPROBS, RESULTS, ENCRYPTED), max_items=16)(value, path)
    value[:] = [name for name in value if name != ENCRYPTED]


with_schema(_include, {"type": "array", "maxItems": 16, "items": {"enum": [LOGPROBS, RESULTS, ENCRYPTED]}})


def responses_table(settings: Settings) -> Table:
    """The fields of `POST /v1/responses`."""
    schema_bytes = int(settings.max_schema_kib * KIB)
    return (
        passed(
            input=check_input,
            instructions=text(),
            max_output_tokens=integer(1, settings.context),
            metadata=metadata,
            stream=boolean,
            temperature=number(0, 2),
            top_p=number(0, 1),
            top_logprobs=integer(0, settings.max_logprobs),
            text=sized(schema_bytes, _text_config),
            tools=sized(schema_bytes, list_of(_tool, max_items=MAX_TOOLS)),
            tool_choice=_tool_choice,
            parallel_tool_calls=boolean,
            reasoning=_reasoning_config,
            include=_include,
            truncation=one_of("auto", "disabled"),
        )
        | _extensions(settings, schema_bytes)
        | dropped(
            user=_HINT,
            safety_identifier=_HINT,
            prompt_cache_key=_HINT,
            prompt_cache_options=mapping,
            prompt_cache_retention=_HINT,
            stream_options=fields({"include_obfuscation": boolean}),
            max_tool_calls=integer(0, MAX_TOKEN_ID),  # it bounds the tools that run on the server: there are none
        )
        | refused(STATELESS, "store", "background", neutral=(False,))
        | refused(STATELESS, "previous_response_id", "conversation", "prompt", "background_options")
        | refused("the engine does not keep messages", "previous_input_messages")
        | refused("the engine's own messages are not shown", "enable_response_messages", neutral=(False,))
        | refused("there is only one service tier", "service_tier", neutral=("auto", "default"))
        | refused("context management is not supported", "context_management", neutral=([],))
        | refused("moderation is not supported", "moderation")
        | refused("watermarking is not supported", "watermarking", neutral=(False,))
        | refused("answers are text", "image", "modalities")
        | refused("access programs are not supported", "access_programs")
        | GUARDED
        | passed(grounding=check_grounding)
    )


def _extensions(settings: Settings, schema_bytes: int) -> dict[str, FieldRule]:
    """vLLM's."""
    stop = text(settings.max_stop_chars)
    return passed(
        top_k=integer(-1, MAX_TOKEN_ID),
        min_p=number(0, 1),
        presence_penalty=number(-2, 2),
        frequency_penalty=number(-2, 2),
        repetition_penalty=number(0, 10),
        seed=integer(-INT64, INT64 - 1),
        stop=either((str, stop), (list, list_of(stop, max_items=settings.max_stops)), allowed="a string or an array"),
        stop_token_ids=list_of(integer(0, MAX_TOKEN_ID), max_items=settings.max_stops),
        include_stop_str_in_output=boolean,
        ignore_eos=boolean,
        skip_special_tokens=boolean,
        logit_bias=logit_bias,
        include_reasoning=boolean,
        structured_outputs=sized(schema_bytes, structured_outputs(schema_bytes)),
        chat_template_kwargs=template_kwargs,
    )
