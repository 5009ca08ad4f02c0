"""Renders conversations to tokens exactly as the engine does, and marks the trained tokens.

The engine renders a request's messages and tools with the base's chat template and `add_generation_prompt`, and
generates from there. So an answer's tokens are those that the template adds after that prompt: the prompt must be a
token-by-token prefix of the rendering with the answer. If it is not (a token spans the border, or the template opens a
block that the answer does not have), the example is refused rather than trained on with a slightly wrong mask.

Some templates render an answer differently once later messages follow: Qwen3's drops the thinking block of earlier
turns. In serving each answer is the last message when it is generated. So an answer that the rendering of the whole
conversation shows differently is trained in a sequence of its own, which ends with it.

Messages are handed to the template as vLLM does it (`renderers/chat_utils.py`): the arguments of tool calls as objects,
no content as an empty text, and of a tool the keys of its `FunctionDefinition`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from adapters.dataset.tools import Tool, ToolCall
from trainer.data.format import Example, Message
from trainer.errors import DataInvalid, ExampleTooLong, Problem, TemplateUnsupported

MIN_CUT_TOKENS: Final = 32
"""An answer is not cut to fewer trained tokens than this: the beginning of an answer teaches little. A choice."""
Passages = Callable[[Example, tuple[Message, ...]], tuple[Message, ...]]
_PROBE_TOOL: Final = "probe_hatrack_tool"
_PROBE_RESULT: Final = "probe-hatrack-result"
_PROBE_ID: Final = "callprobe"
"""Nine letters, as Mistral's templates demand."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One example as tokens.

    tokens: The T token ids of the whole conversation.
    trained: T flags; true for tokens whose prediction counts in the loss. Never true at index 0.
    line: The example's line in its file, from 1.
    rejected: In preference data the same conversation with the worse answer.
    reference: The log-probabilities (nats) of both answers before the training: of `tokens`, and of `rejected`.
    """

    tokens: tuple[int, ...]
    trained: tuple[bool, ...]
    line: int
    rejected: TokenSequence | None = None
    reference: tuple[float, float] | None = None

    @property
    def first_trained(self) -> int:
        """The index of the first trained token."""
        return self.trained.index(True)

    @property
    def longest(self) -> int:
        """The tokens of the sequence, or of the longer one of a pair."""
        return max(len(self.tokens), 0 if self.rejected is None else len(self.rejected.tokens))

    @property
    def size(self) -> int:
        """The tokens that the model runs over for this example: those of both answers of a pair."""
        return len(self.tokens) + (0 if self.rejected is None else len(self.rejected.tokens))

    @property
    def size_trained(self) -> int:
        """The trained ones of `size`."""
        return sum(self.trained) + (0 if self.rejected is None else sum(self.rejected.trained))


@dataclass(frozen=True, slots=True)
class Shortened:
    """An example that was made to fit: without its oldest turns, or, if ``cut``, without the end of its answer, too."""

    example: Example
    sequences: tuple[TokenSequence, ...]
    cut: bool


class Renderer:
    """Renders conversations for one base model.

    Args:
        tokenizer: The base's transformers tokenizer, with its chat template.
        stop_tokens: The ids that end a generation (`generation_config.eos_token_id` and the tokenizer's own).
        max_length: Maximum length of a sequence in tokens; `render` refuses longer ones, `shorten` makes them fit.
        system_prompt: Prepended to examples without a system message, as the gateway does in serving.
        passages: Gives a conversation with the passages that serving would retrieve for it; None: none are retrieved.

    Raises TemplateUnsupported if there is no chat template, or no token that ends a turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_tokens: Iterable[int],
        max_length: int,
        system_prompt: str | None = None,
        passages: Passages | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = frozenset(stop_tokens)
        self.max_length = max_length
        self._system_prompt = system_prompt
        self._passages = passages
        self._control_texts = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content
        )
        if not tokenizer.chat_template:
            raise TemplateUnsupported("The base model has no chat template.")
        if not self._stop_tokens:
            raise TemplateUnsupported("The base model has no token that ends an answer: eos_token_id is not set.")

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the chat template renders declared tools, tool calls and the messages that answer them."""
        function = {"name": _PROBE_TOOL, "description": "A probe.", "parameters": {"type": "object", "properties": {}}}
        user = Message("user", "probe", trained=False)
        call = Message("assistant", "", trained=True, tool_calls=(ToolCall(_PROBE_TOOL, "{}", _PROBE_ID),))
        result = Message("tool", _PROBE_RESULT, trained=False, tool_call_id=_PROBE_ID, name=_PROBE_TOOL)
        try:
            declared = self._text((user,), ({"type": "function", "function": function},))
            calls, results = self._text((user, call)), self._text((user, call, result))
        except _TemplateRefuses:
            return False
        return _PROBE_TOOL in declared and _PROBE_TOOL in calls and _PROBE_RESULT in results

    def render_all(self, examples: Iterable[Example]) -> list[TokenSequence]:
        """Render every example. Raises DataInvalid with every problem, or TemplateUnsupported."""
        sequences: list[TokenSequence] = []
        problems: list[Problem] = []
        for example in examples:
            try:
                sequences.extend(self.render(example))
            except DataInvalid as error:
                problems.extend(error.problems)
        if problems:
            raise DataInvalid(problems)
        return sequences

    def render(self, example: Example) -> tuple[TokenSequence, ...]:
        """Render one example: one sequence, or more if the template renders earlier answers differently once later
        messages follow. Each trained answer is trained in exactly one of them; the longest comes first. A pair is one
        sequence with both answers.

        Raises:
            ExampleTooLong: It exceeds `max_length`.
            DataInvalid: The template refuses the conversation, or its trained tokens cannot be marked exactly.
            TemplateUnsupported: The template does not end answers with a stop token.
        """
        sequences = self._render(example, example.messages, limit=self.max_length)
        if example.rejected is not None:
            # of a pair the last answer alone is trained
            (rejected,) = self._render(example, (*example.messages[:-1], example.rejected), limit=self.max_length)
            sequences = (replace(sequences[0], rejected=rejected),)
        return sequences

    def shorten(self, example: Example, *, cut_answer: bool) -> Shortened | None:
        """A too long example that fits: without as many of its oldest turns as needed, and if even the last question
        and its answer are too long, without the end of that answer. The token that ends a turn is then not trained.

        Args:
            example: One that `render` refuses as too long.
            cut_answer: Whether an answer may be cut. A tool call and the answers of a pair never are.

        Returns:
            None if it cannot be made to fit. Raises DataInvalid and TemplateUnsupported as `render`.
        """
        system = example.messages[:1] if example.messages[0].role == "system" else ()
        starts = [at for at, message in enumerate(example.messages) if message.role == "user"]
        last = example
        for start in [at for at in starts[1:] if any(message.trained for message in example.messages[at:])]:
            last = replace(example, messages=(*system, *example.messages[start:]))
            try:
                return Shortened(last, self.render(last), cut=False)
            except ExampleTooLong:
                continue
        if not cut_answer or last.rejected is not None or last.messages[-1].tool_calls or not last.messages[-1].trained:
            return None
        whole = self._render(last, last.messages)[0]
        tokens, trained = whole.tokens[: self.max_length], whole.trained[: self.max_length]
        if sum(trained) < MIN_CUT_TOKENS:
            return None
        return Shortened(last, (TokenSequence(tokens, trained, last.line),), cut=trained != whole.trained)

    def _render(
        self, example: Example, messages: tuple[Message, ...], *, limit: int | None = None
    ) -> tuple[TokenSequence, ...]:
        """One conversation; raises ExampleTooLong if a sequence has more than ``limit`` tokens."""
        if self._system_prompt is not None and messages[0].role != "system":
            messages = (Message("system", self._system_prompt, trained=False), *messages)
        if self._passages is not None:
            messages = self._passages(example, messages)
        self._refuse_control_texts(messages, example)
        whole = self._tokens(messages, example)
        if limit is not None and len(whole) > limit:
            raise ExampleTooLong(example.line, len(whole), limit)
        drafts = [(whole, [False] * len(whole))]
        for index in reversed(range(len(messages))):
            if not messages[index].trained:
                continue
            rendered, start, stop = self._answer_span(messages[: index + 1], example)
            trained = next((flags for tokens, flags in drafts if tokens[: len(rendered)] == rendered), None)
            if trained is None:
                trained = [False] * len(rendered)
                drafts.append((rendered, trained))
            trained[start:stop] = [True] * (stop - start)
        drafts = [draft for draft in drafts if any(draft[1])]
        if not drafts:
            raise _refused(example.line, "it has no token to train on")
        longest = max(len(tokens) for tokens, _ in drafts)
        if limit is not None and longest > limit:
            raise ExampleTooLong(example.line, longest, limit)
        return tuple(TokenSequence(tuple(tokens), tuple(trained), example.line) for tokens, trained in drafts)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, with control tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def _answer_span(self, messages: tuple[Message, ...], example: Example) -> tuple[list[int], int, int]:
        """The conversation's tokens, and [start, stop) of its last message in them, with the token that ends it."""
        prompt = self._tokens(messages[:-1], example, generate=True)
        rendered = self._tokens(messages, example)
        if not prompt or rendered[: len(prompt)] != prompt:
            place = f"messages[{len(messages) - 1}]"
            raise _refused(example.line, f"{place}: the chat template does not render its prompt as a prefix of it")
        for position in range(len(prompt), len(rendered)):
            if rendered[position] in self._stop_tokens:
                return rendered, len(prompt), position + 1
        raise TemplateUnsupported("The base's chat template does not end an answer with a token that stops generation.")

    def _tokens(self, messages: tuple[Message, ...], example: Example, *, generate: bool = False) -> list[int]:
        # In two steps, like the engine; the template has already added the special tokens.
        try:
            text = self._text(messages, example.tools, generate=generate)
        except _TemplateRefuses as refusal:
            raise _refused(example.line, self._why(messages, example.tools, refusal)) from refusal
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _text(self, messages: tuple[Message, ...], tools: tuple[Tool, ...] = (), *, generate: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [_template_message(message) for message in messages],
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generate,
            )
        except Exception as error:  # a template is a program of the base's authors: it fails with whatever it likes
            raise _TemplateRefuses(str(error)) from error
        return text

    def _why(self, messages: tuple[Message, ...], tools: tuple[Tool, ...], refusal: _TemplateRefuses) -> str:
        """A sentence that names the first message from which on the template refuses the conversation."""
        last = len(messages) - 1
        while last > 0 and self._refuses(messages[:last], tools):
            last -= 1
        message = messages[last]
        reason = f"messages[{last}] ({message.role}): the base's chat template refuses the conversation"
        if str(refusal):
            reason += f": {str(refusal)[:200]}"
        before = messages[last - 1].role if last else None
        if before == message.role:
            return f"{reason} — two {message.role} messages follow each other; make them one"
        if before in (None, "system") and message.role == "assistant":
            return f"{reason} — the first message after the system message must be the user's"
        return reason

    def _refuses(self, messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> bool:
        try:
            self._text(messages, tools, generate=messages[-1].role != "assistant")
        except _TemplateRefuses:
            return True
        return False

    def _refuse_control_texts(self, messages: tuple[Message, ...], example: Example) -> None:
        declared = json.dumps(example.tools, ensure_ascii=False) if example.tools else ""
        for text in self._control_texts:
            if text in declared:
                raise _refused(example.line, f"tools contain the control token {text!r}")
            for message in messages:
                if text in message.text:
                    raise _refused(example.line, f"the {message.role}'s content contains the control token {text!r}")


class _TemplateRefuses(Exception):
    """The template raised an error for a conversation; the message is its own."""


def _template_message(message: Message) -> dict[str, Any]:
    """A message as vLLM hands it to the chat template."""
    rendered: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        rendered["tool_calls"] = [call.rendered() for call in message.tool_calls]
    for key in ("tool_call_id", "name"):
        if getattr(message, key) is not None:
            rendered[key] = getattr(message, key)
    return rendered


def stop_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The token ids that end a generation in the engine."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _refused(line: int, reason: str) -> DataInvalid:
    return DataInvalid([Problem(line, reason)])
