"""One table of request fields for each route: passed (with its bounds), dropped, or refused by name.

Every field that OpenAI documents and every extension of vLLM stands here. Null means absent, as with OpenAI. A field
that has no effect here is dropped; one that asks for what cannot be done is refused, save in the value that asks for
nothing. What stands in no table is refused by name, or passed where `HATRACK_UNKNOWN_FIELDS=pass`; a field that the
gateway reads for other routes is refused there, too, since nothing checks its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.config import Settings
from service.errors import BadRequest, FieldRefused, UnknownField
from service.grounding.fields import check_grounding
from service.http.checks import (
    INT64,
    Check,
    anything,
    boolean,
    describe,
    either,
    fields,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    sized,
    text,
)
from service.inference.messages import check_messages
from service.inference.values import (
    MAX_ALLOWED_TOKENS,
    MAX_HINT_CHARS,
    MAX_TOKEN_ID,
    logit_bias,
    response_format,
    structured_outputs,
    template_kwargs,
    texts_or_tokens,
    token_ids,
    tool,
    tool_choice,
)

KIB = 1024
MAX_PROMPTS = 256
MAX_INPUTS = 2048
MAX_TOOLS = 128
MAX_PATTERN_TOKENS = 256


@dataclass(frozen=True, slots=True)
class FieldRule:
    """How a request's field is handled.

    ``refuse`` is the reason why no request may set it; the values in ``neutral`` are dropped without an error.
    """

    check: Check = anything
    forward: bool = True
    refuse: str | None = None
    neutral: tuple[Any, ...] = ()


Table = Mapping[str, FieldRule]


def passed(**checks: Check) -> dict[str, FieldRule]:
    """Rules of fields that are checked and passed to the engine."""
    return {name: FieldRule(check) for name, check in checks.items()}


def dropped(**checks: Check) -> dict[str, FieldRule]:
    """Rules of fields that are checked and have no effect."""
    return {name: FieldRule(check, forward=False) for name, check in checks.items()}


def refused(reason: str, *names: str, neutral: tuple[Any, ...] = ()) -> dict[str, FieldRule]:
    """Rules of fields that a request may only set to a ``neutral`` value."""
    return {name: FieldRule(forward=False, refuse=reason, neutral=neutral) for name in names}


# what would let a caller point the engine elsewhere, reach into it, or step on another request
GUARDED = (
    refused("name the adapter in `model` or `adapter`", "lora_path", "lora_name", "lora_request", "lora_int_id")
    | refused("the chat template belongs to the base model", "chat_template")
    | refused(
        "it controls engine internals",
        *("kv_transfer_params", "ec_transfer_params", "mm_processor_kwargs", "media_io_kwargs", "mm_payload"),
        *("return_mm_kwargs", "vllm_xargs", "routed_experts_prompt_start", "return_routed_experts", "session_id"),
    )
    | refused("only the gateway sets it", "cache_salt", "priority")
    | refused("send the header `x-request-id`", "request_id")
    | refused("send prompts as text or token ids", "prompt_embeds")
    | refused("use `grounding`, which the gateway handles", "documents")
    | refused("only chat completions, responses and messages can be grounded", "grounding", neutral=(False,))
    | refused("the engine's render routes are not supported", "return_token_offsets", neutral=(False,))
    | refused(
        "vLLM removed it; use `structured_outputs` or `response_format`",
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        "guided_whitespace_pattern",
    )
)


def _generation(settings: Settings) -> dict[str, FieldRule]:
    """The fields that chat and text completions share."""
    return (
        _openai_generation(settings)
        | _vllm_generation(settings)
        | dropped(user=text(MAX_HINT_CHARS))
        | refused("beam search is not supported", "use_beam_search", neutral=(False,))
        | refused("watermarking is not supported", "watermarking", neutral=(False,))
        | GUARDED
    )


def _openai_generation(settings: Settings) -> dict[str, FieldRule]:
    stop = text(settings.max_stop_chars)
    return passed(
        frequency_penalty=number(-2, 2),
        presence_penalty=number(-2, 2),
        logit_bias=logit_bias,
        n=integer(1, settings.max_n),
        seed=integer(-INT64, INT64 - 1),
        stop=either((str, stop), (list, list_of(stop, max_items=settings.max_stops)), allowed="a string or an array"),
        stream=boolean,
        stream_options=fields(
            {"include_usage": boolean, "continuous_usage_stats": boolean, "include_obfuscation": boolean}
        ),
        temperature=number(0, 2),
        top_p=number(0, 1),
    )


def _vllm_generation(settings: Settings) -> dict[str, FieldRule]:
    """vLLM's extensions."""
    context = settings.context
    schema_bytes = int(settings.max_schema_kib * KIB)
    token_id = integer(0, MAX_TOKEN_ID)
    return passed(
        top_k=integer(-1, MAX_TOKEN_ID),
        min_p=number(0, 1),
        repetition_penalty=number(0, 10),
        length_penalty=number(-10, 10),
        stop_token_ids=list_of(token_id, max_items=settings.max_stops),
        include_stop_str_in_output=boolean,
        ignore_eos=boolean,
        min_tokens=integer(0, context),
        skip_special_tokens=boolean,
        spaces_between_special_tokens=boolean,
        add_special_tokens=boolean,
        truncate_prompt_tokens=integer(-1, context),
        truncation_side=one_of("left", "right"),
        prompt_logprobs=integer(0, settings.max_logprobs),
        logprob_token_ids=list_of(token_id, max_items=settings.max_logprobs),
        allowed_token_ids=token_ids(min_items=1, max_items=MAX_ALLOWED_TOKENS),
        bad_words=list_of(text(settings.max_stop_chars), max_items=settings.max_stops),
        return_tokens_as_token_ids=boolean,
        return_token_ids=boolean,
        thinking_token_budget=integer(-1, context),
        stream_interval=integer(1, context or MAX_TOKEN_ID),
        response_format=sized(schema_bytes, response_format),
        structured_outputs=sized(schema_bytes, structured_outputs(schema_bytes)),
        repetition_detection=fields(
            {
                "max_pattern_size": integer(0, MAX_PATTERN_TOKENS),
                "min_pattern_size": integer(0, MAX_PATTERN_TOKENS),
                "min_count": integer(0, MAX_TOKEN_ID),
            }
        ),
    )


def chat_table(settings: Settings) -> Table:
    """The fields of `POST /v1/chat/completions`."""
    tools = sized(int(settings.max_schema_kib * KIB), list_of(tool, max_items=MAX_TOOLS))
    hint = text(MAX_HINT_CHARS)
    return (
        _generation(settings)
        | passed(
            messages=check_messages,
            logprobs=boolean,
            top_logprobs=integer(0, settings.max_logprobs),
            max_tokens=integer(1, settings.context),
            max_completion_tokens=integer(1, settings.context),
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=boolean,
            reasoning_effort=one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
            include_reasoning=boolean,
            echo=boolean,
            add_generation_prompt=boolean,
            continue_final_message=boolean,
            chat_template_kwargs=template_kwargs,
            return_prompt_text=boolean,
            grounding=check_grounding,
        )
        | dropped(
            metadata=mapping,
            safety_identifier=hint,
            prompt_cache_key=hint,
            prompt_cache_options=mapping,
            prompt_cache_retention=hint,
            prediction=mapping,  # it may only make an answer faster, never another one
        )
        | refused("this server does not store completions", "store", neutral=(False,))
        | refused("there is only one service tier", "service_tier", neutral=("auto", "default"))
        | refused("answers are text", "modalities", neutral=(["text"],))
        | refused("answers are text", "audio")
        | refused("the model does not support it; ask for it in the prompt", "verbosity", neutral=("medium",))
        | refused("web search is not supported", "web_search_options")
        | refused("moderation is not supported", "moderation")
        | refused("it is deprecated; use `tools`", "functions", neutral=([],))
        | refused("it is deprecated; use `tool_choice`", "function_call", neutral=("none",))
        | refused("the engine returns every candidate; use `n`", "best_of", neutral=(1,))
    )


def completions_table(settings: Settings) -> Table:
    """The fields of `POST /v1/completions`."""
    return (
        _generation(settings)
        | passed(
            prompt=texts_or_tokens("a prompt", MAX_PROMPTS),
            echo=boolean,
            logprobs=integer(0, settings.max_logprobs),
            max_tokens=integer(0, settings.context),  # 0 with `echo` scores a text
        )
        # checked against `n` in check_body: the engine cannot choose the best of more candidates than it returns
        | dropped(best_of=integer(1, settings.max_n))
        | refused("the engine does not support insertion", "suffix", neutral=("",))
    )


def embeddings_table(settings: Settings) -> Table:
    """The fields of `POST /v1/embeddings`."""
    return (
        passed(
            input=texts_or_tokens("an input", MAX_INPUTS),
            dimensions=integer(1, MAX_TOKEN_ID),
            encoding_format=one_of("float", "base64"),
            truncate_prompt_tokens=integer(-1, settings.context),
            truncation_side=one_of("left", "right"),
            add_special_tokens=boolean,
            use_activation=boolean,
        )
        | dropped(user=text(MAX_HINT_CHARS))
        | refused("embeddings are returned as JSON", "embed_dtype", "endianness", "padding")
        | refused("embeddings take `input`", "messages", "add_generation_prompt", "continue_final_message")
        | refused("embeddings take `input`", "chat_template_kwargs")
        | GUARDED
    )


def tokenize_table(settings: Settings) -> Table:
    """The fields of `POST /tokenize`."""
    return (
        passed(
            prompt=text(),
            messages=check_messages,
            add_special_tokens=boolean,
            return_token_strs=boolean,
            add_generation_prompt=boolean,
            continue_final_message=boolean,
            chat_template_kwargs=template_kwargs,
            tools=sized(int(settings.max_schema_kib * KIB), list_of(tool, max_items=MAX_TOOLS)),
        )
        | GUARDED
    )


def detokenize_table(_settings: Settings) -> Table:
    """The fields of `POST /detokenize`."""
    return passed(tokens=token_ids()) | GUARDED


READ_BY_GATEWAY = frozenset(
    {
        "best_of",
        "dimensions",
        "encoding_format",
        "grounding",
        "include",
        "input",
        "instructions",
        "max_completion_tokens",
    }
    | {"max_output_tokens", "max_tokens", "messages", "metadata", "n", "output_config", "parallel_tool_calls", "prompt"}
    | {"response_format", "safety_identifier", "stop_sequences", "stream", "stream_options", "structured_outputs"}
    | {"system", "text", "tokens", "tool_choice", "tools", "truncate_prompt_tokens", "truncation", "user"}
)
"""Fields whose values the gateway uses itself. Where a route's table lacks one, it is never passed unchecked."""


def check_body(body: dict[str, Any], table: Table, required: tuple[str, ...], *, pass_unknown: bool) -> None:
    """Check every field and take out what is null or has no effect; changes ``body`` in place.

    ``required`` names groups of fields of which one must be there, written `a|b`.

    Raises:
        BadRequest: A value is not allowed, or a field is missing.
        FieldRefused: A field that no request may set.
        UnknownField: A field in no table.
    """
    for name in list(body):
        value = body[name]
        rule = table.get(name)
        if rule is None and (not pass_unknown or (value is not None and name in READ_BY_GATEWAY)):
            raise unknown_field(name)
        if value is None:
            del body[name]
        elif rule is None:
            continue  # the engine may know it
        elif rule.refuse is not None:
            if not any(type(value) is type(neutral) and value == neutral for neutral in rule.neutral):
                raise FieldRefused(f"`{name}` cannot be used here: {rule.refuse}", param=name)
            del body[name]
        else:
            rule.check(value, name)
            if not rule.forward and name != "best_of":
                del body[name]
    _check_combinations(body, required)


def _check_combinations(body: dict[str, Any], required: tuple[str, ...]) -> None:
    for group in required:
        names = group.split("|")
        present = [name for name in names if name in body]
        if len(present) != 1:
            names_list = " or ".join(f"`{name}`" for name in names)
            if present:
                raise BadRequest(f"only one of {names_list} is allowed", param=present[1])
            raise BadRequest(f"{names_list} is missing", param=names[0], code="missing_required_parameter")
    best_of = body.pop("best_of", None)
    if best_of is not None and best_of != body.get("n", 1):
        raise FieldRefused(
            f"`best_of` must equal `n` ({body.get('n', 1)}); got {best_of}. The engine returns every candidate",
            param="best_of",
        )
    if "stream_options" in body and not body.get("stream"):
        raise BadRequest("`stream_options` is only allowed with `stream: true`", param="stream_options")


def unknown_field(name: str) -> UnknownField:
    """The error for a field in no table."""
    return UnknownField(f"unknown field {describe(name)}", param=name[:100])


SAMPLING_FIELDS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"}
    | {"max_tokens", "seed", "stop", "stop_token_ids", "bad_words", "min_tokens", "logit_bias"}
)
"""What a version's `settings.sampling` may set."""


def check_sampling(sampling: Mapping[str, Any], settings: Settings) -> None:
    """Check a version's sampling defaults with the bounds of a request.

    Raises:
        UnknownField: A field that is no sampling default.
        BadRequest: A value out of its bounds.
    """
    table = chat_table(settings)
    for name, value in sampling.items():
        path = f"settings.sampling.{name[:100]}"
        if name not in SAMPLING_FIELDS:
            raise UnknownField(
                f"{describe(name)} is not a sampling default; allowed are {sorted(SAMPLING_FIELDS)}", param=path
            )
        table[name].check(value, path)
