"""From conversations to tokens, exactly as the engine renders them, with the trained tokens marked.

The engine renders a request's messages with the base's chat template and `add_generation_prompt`, and generates from
there. So an answer's tokens are what the template adds when the answer follows that very prompt: the prompt must be a
prefix of the rendering with the answer, token for token. Where a template breaks this (it rewrites earlier turns, or
text merges over the border into one token) the example is refused rather than trained on with a mask that is
nearly right.
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

    tokens: The token ids of the whole conversation, length T.
    trained: T flags; true where the loss counts the prediction of that token from those before it. Never true at 0.
    line: Where the example stands in its file, from 1.
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
        max_length: Longest sequence in tokens; a longer one is refused, never cut.
        system_prompt: Put first where an example brings no system message, as the gateway does when it serves.

    Raises TemplateUnsupported if there is no chat template or no token that ends a turn.
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
            raise TemplateUnsupported("The base model names no token that ends an answer.")

    def render_all(self, examples: Iterable[Example]) -> list[TokenSequence]:
        """Render every example. Raises DataInvalid with all that cannot be, TemplateUnsupported."""
        sequences: list[TokenSequence] = []
        problems: list[Problem] = []
        for example in examples:
            try:
                sequences.append(self.render(example))
            except DataInvalid as error:
                problems.extend(error.problems)
        if problems:
            raise DataInvalid(problems)
        return sequences

    def render(self, example: Example) -> TokenSequence:
        """Render one example. Raises DataInvalid where it would be cut or not masked exactly, TemplateUnsupported."""
        messages = example.messages
        if self._system_prompt is not None and messages[0].role != "system":
            messages = (Message("system", self._system_prompt, trained=False), *messages)
        self._refuse_control_texts(messages, example.line)
        tokens = self._tokens(messages)
        if len(tokens) > self.max_length:
            raise ExampleTooLong(example.line, len(tokens), self.max_length)
        trained = [False] * len(tokens)
        for index, message in enumerate(messages):
            if message.trained:
                start, stop = self._answer_span(messages[: index + 1], tokens, example.line)
                trained[start:stop] = [True] * (stop - start)
        if not any(trained):
            raise _refused(example.line, "there is no token to train on")
        return TokenSequence(tuple(tokens), tuple(trained), example.line)

    def text(self, tokens: Sequence[int]) -> str:
        """What these tokens stand for, control tokens shown."""
        shown: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return shown

    def _answer_span(self, messages: tuple[Message, ...], tokens: list[int], line: int) -> tuple[int, int]:
        """[start, stop) of the last message's answer within `tokens`, up to and with the token that ends its turn."""
        prompt = self._tokens(messages[:-1], generate=True)
        until = self._tokens(messages)
        if not prompt or until[: len(prompt)] != prompt:
            raise _refused(
                line, f"messages[{len(messages) - 1}]: its prompt is no prefix of it as the engine renders it"
            )
        if tokens[: len(until)] != until:
            raise _refused(
                line, f"messages[{len(messages) - 1}]: the chat template renders it otherwise in a later turn"
            )
        for position in range(len(prompt), len(until)):
            if until[position] in self._stop_tokens:
                return len(prompt), position + 1
        raise TemplateUnsupported("The base's chat template does not end an answer with a token that stops generation.")

    def _tokens(self, messages: tuple[Message, ...], *, generate: bool = False) -> list[int]:
        # In two steps, as the engine does it; the template has already put the special tokens in.
        text = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=generate,
        )
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _refuse_control_texts(self, messages: tuple[Message, ...], line: int) -> None:
        for message in messages:
            for text in self._control_texts:
                if text in message.content:
                    raise _refused(line, f"the {message.role}'s content holds the control token {text!r}")


def stop_tokens(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The token ids at which the engine ends a generation."""
    configured = getattr(generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _refused(line: int, reason: str) -> DataInvalid:
    return DataInvalid([Problem(line, reason)])
