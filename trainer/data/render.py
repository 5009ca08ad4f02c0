"""Renders conversations to tokens exactly as the engine does, and marks the trained tokens.

The engine renders a request's messages with the base's chat template and `add_generation_prompt`, and generates from
there. So an answer's tokens are those that the template adds after that prompt: the prompt must be a token-by-token
prefix of the rendering with the answer. If it is not (a token spans the border, or the template opens a block that the
answer does not have), the example is refused rather than trained on with a slightly wrong mask.

Some templates render an answer differently once later messages follow: Qwen3's drops the thinking block of earlier
turns. In serving each answer is the last message when it is generated. So an answer that the rendering of the whole
conversation shows differently is trained in a sequence of its own, which ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.format import Example, Message
from trainer.errors import DataInvalid, ExampleTooLong, Problem, TemplateUnsupported


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One example as tokens.

    tokens: The T token ids of the whole conversation.
    trained: T flags; true for tokens whose prediction counts in the loss. Never true at index 0.
    line: The example's line in its file, from 1.
    """

    tokens: tuple[int, ...]
    trained: tuple[bool, ...]
    line: int

    @property
    def first_trained(self) -> int:
        """The index of the first trained token."""
        return self.trained.index(True)


class Renderer:
    """Renders conversations for one base model.

    Args:
        tokenizer: The base's transformers tokenizer, with its chat template.
        stop_tokens: The ids that end a generation (`generation_config.eos_token_id` and the tokenizer's own).
        max_length: Maximum length of a sequence in tokens; longer ones are refused, never truncated.
        system_prompt: Prepended to examples without a system message, as the gateway does in serving.

    Raises TemplateUnsupported if there is no chat template, or no token that ends a turn.
    """

    def __init__(
        self, tokenizer: Any, *, stop_tokens: Iterable[int], max_length: int, system_prompt: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = frozenset(stop_tokens)
        self.max_length = max_length
        self._system_prompt = system_prompt
        self._control_texts = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content
        )
        if not tokenizer.chat_template:
            raise TemplateUnsupported("The base model has no chat template.")
        if not self._stop_tokens:
            raise TemplateUnsupported("The base model has no token that ends an answer: eos_token_id is not set.")

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
        messages follow. Each trained answer is trained in exactly one of them; the longest comes first.

        Raises:
            ExampleTooLong: It exceeds `max_length`.
            DataInvalid: The template refuses the conversation, or its trained tokens cannot be marked exactly.
            TemplateUnsupported: The template does not end answers with a stop token.
        """
        messages = example.messages
        if self._system_prompt is not None and messages[0].role != "system":
            messages = (Message("system", self._system_prompt, trained=False), *messages)
        self._refuse_control_texts(messages, example.line)
        whole = self._tokens(messages, example.line)
        if len(whole) > self.max_length:
            raise ExampleTooLong(example.line, len(whole), self.max_length)
        drafts = [(whole, [False] * len(whole))]
        for index in reversed(range(len(messages))):
            if not messages[index].trained:
                continue
            rendered, start, stop = self._answer_span(messages[: index + 1], example.line)
            trained = next((flags for tokens, flags in drafts if tokens[: len(rendered)] == rendered), None)
            if trained is None:
                trained = [False] * len(rendered)
                drafts.append((rendered, trained))
            trained[start:stop] = [True] * (stop - start)
        drafts = [draft for draft in drafts if any(draft[1])]
        if not drafts:
            raise _refused(example.line, "it has no token to train on")
        longest = max(len(tokens) for tokens, _ in drafts)
        if longest > self.max_length:
            raise ExampleTooLong(example.line, longest, self.max_length)
        return tuple(TokenSequence(tuple(tokens), tuple(trained), example.line) for tokens, trained in drafts)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, with control tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def _answer_span(self, messages: tuple[Message, ...], line: int) -> tuple[list[int], int, int]:
        """The conversation's tokens, and [start, stop) of its last message in them, with the token that ends it."""
        prompt = self._tokens(messages[:-1], line, generate=True)
        rendered = self._tokens(messages, line)
        if not prompt or rendered[: len(prompt)] != prompt:
            raise _refused(
                line, f"messages[{len(messages) - 1}]: the chat template does not render its prompt as a prefix of it"
            )
        for position in range(len(prompt), len(rendered)):
            if rendered[position] in self._stop_tokens:
                return rendered, len(prompt), position + 1
        raise TemplateUnsupported("The base's chat template does not end an answer with a token that stops generation.")

    def _tokens(self, messages: tuple[Message, ...], line: int, *, generate: bool = False) -> list[int]:
        # In two steps, like the engine; the template has already added the special tokens.
        try:
            text = self._apply(messages, generate=generate)
        except _TemplateRefuses as refusal:
            raise _refused(line, self._why(messages, refusal)) from refusal
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _apply(self, messages: tuple[Message, ...], *, generate: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                tokenize=False,
                add_generation_prompt=generate,
            )
        except Exception as error:  # a template is a program of the base's authors: it fails with whatever it likes
            raise _TemplateRefuses(str(error)) from error
        return text

    def _why(self, messages: tuple[Message, ...], refusal: _TemplateRefuses) -> str:
        """A sentence that names the first message from which on the template refuses the conversation."""
        last = len(messages) - 1
        while last > 0 and self._refuses(messages[:last]):
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

    def _refuses(self, messages: tuple[Message, ...]) -> bool:
        try:
            self._apply(messages, generate=messages[-1].role != "assistant")
        except _TemplateRefuses:
            return True
        return False

    def _refuse_control_texts(self, messages: tuple[Message, ...], line: int) -> None:
        for message in messages:
            for text in self._control_texts:
                if text in message.content:
                    raise _refused(line, f"the {message.role}'s content contains the control token {text!r}")


class _TemplateRefuses(Exception):
    """The template raised an error for a conversation; the message is its own."""


def stop_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The token ids that end a generation in the engine."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _refused(line: int, reason: str) -> DataInvalid:
    return DataInvalid([Problem(line, reason)])
