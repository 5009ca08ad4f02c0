"""How long a prompt can be: what cannot fit into the context in any tokenization is refused before the engine sees it.

The engine tokenizes in threads of its event loop's process, about a megabyte a second. Without a bound here one text of
8 MB holds a thread for seconds, and everybody's prompts behind it, before the engine says that it is too long. A text
of any length fits into a long enough context, or is cut to it: so what only tokenizes, and what is cut, has a bound of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.errors import BadRequest

TOKEN_CHARS: Final = 128
"""Characters of the longest token where the vocabulary cannot be read: what today's large ones have."""
MAX_TOKENIZED_CHARS: Final = 2**20
"""Characters in a request that only tokenizes, or whose prompt the engine cuts: about one second of the tokenizer's
time, and what 262,144 tokens of English have."""
_LISTS_OF_PROMPTS: Final = ("prompt", "input")
_CONVERSATION_FIELDS: Final = ("system", "instructions", "tools")
"""What else of a conversation goes into its prompt."""
_MEDIA: Final = frozenset({"image_url", "audio_url", "video_url", "input_audio", "input_image", "image"})
"""Types of parts without a text."""


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """The longest prompt that may fit the context.

    ``tokens`` is the context's length, None where nobody knows it: then there is no limit. ``token_chars`` are the
    characters of the tokenizer's longest token.
    """

    tokens: int | None
    token_chars: int = TOKEN_CHARS

    @classmethod
    def of_checkpoint(cls, directory: Path, context: int | None) -> PromptLimit:
        """The limit for a base model.

        Args:
            directory: Its checkpoint.
            context: Length in tokens that the engine is started with; None: the model's own.
        """
        return cls(context if context is not None else _model_context(directory), _longest_token(directory))

    @property
    def chars(self) -> int | None:
        """Maximum characters of a prompt that fits the context; None: no limit."""
        return None if self.tokens is None else self.tokens * self.token_chars

    def check_ids(self, body: dict[str, Any], size: int) -> None:
        """Refuse a prompt of more token ids than the context has; before anything looks at each of them.

        Args:
            body: The request, not checked yet.
            size: Bytes of its JSON: an id and its comma are two or more.

        Raises:
            BadRequest: With the code that the engine's own refusal has.
        """
        if self.tokens is None or size <= self.tokens or _is_cut(body):
            return
        for field, count in _token_counts(body):
            if count > self.tokens:
                raise _too_long(field, f"{count} tokens", f"{self.tokens} tokens")

    def check_text(self, body: dict[str, Any], size: int, *, only_tokenizes: bool = False) -> None:
        """Refuse a prompt of more characters than the context's tokens can have, or than may be tokenized at once.

        Args:
            body: The checked request.
            size: Bytes of its JSON: no text in it has more characters.
            only_tokenizes: No model runs for it.

        Raises:
            BadRequest: Beyond the context with the code that the engine's own refusal has.
        """
        is_cut = _is_cut(body)
        if self.chars is not None and size > self.chars and not is_cut:
            for field, count in _char_counts(body):
                if count > self.chars:
                    longest = f"{self.chars} characters ({self.tokens} tokens of at most {self.token_chars})"
                    raise _too_long(field, f"{count} characters", longest)
        if (only_tokenizes or is_cut) and size > MAX_TOKENIZED_CHARS:
            counts = dict(_char_counts(body))
            total, longest_field = sum(counts.values()), max(counts, key=lambda field: counts[field])
            if total > MAX_TOKENIZED_CHARS:
                purpose = "a prompt that is cut to the context" if is_cut else "a request that only tokenizes"
                raise BadRequest(
                    f"the request has {total} characters to tokenize; the limit for {purpose} is {MAX_TOKENIZED_CHARS}",
                    param=longest_field,
                )


def _is_cut(body: dict[str, Any]) -> bool:
    """Whether the engine cuts the prompt to the context, however long it is."""
    return body.get("truncate_prompt_tokens") is not None or body.get("truncation") == "auto"


def _too_long(field: str, size: str, max_size: str) -> BadRequest:
    return BadRequest(
        f"`{field}` has {size}; the context holds at most {max_size}", param=field, code="context_length_exceeded"
    )


def _token_counts(body: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Prompts that came as token ids: where they stand, and how many ids they have."""
    if isinstance(body.get("tokens"), list):
        yield "tokens", len(body["tokens"])
    for field in _LISTS_OF_PROMPTS:
        value = body.get(field)
        if isinstance(value, list) and value:
            if type(value[0]) is int:
                yield field, len(value)
            else:
                yield from ((f"{field}.{at}", len(ids)) for at, ids in enumerate(value) if isinstance(ids, list))


def _char_counts(body: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Prompts that came as text, and their characters: each of a list by itself, a conversation as a whole."""
    conversation, field = 0, "messages" if "messages" in body else "input"
    for name in _LISTS_OF_PROMPTS:
        value = body.get(name)
        if isinstance(value, str):
            yield name, len(value)
        elif isinstance(value, list):
            yield from ((f"{name}.{at}", len(text)) for at, text in enumerate(value) if isinstance(text, str))
            conversation += sum(_chars_of_message(item) for item in value if isinstance(item, dict))
    conversation += sum(_chars_of_message(message) for message in body.get("messages", ()))
    conversation += sum(_chars(body[name]) for name in _CONVERSATION_FIELDS if name in body)
    yield field, conversation


def _chars_of_message(message: dict[str, Any]) -> int:
    """Characters of a message, an item or a block; images and sounds in its content are none."""
    count = 0
    for name, value in message.items():
        if name in ("content", "output") and isinstance(value, list):
            count += sum(_chars_of_message(part) for part in value if part.get("type") not in _MEDIA)
        else:
            count += _chars(value)
    return count


def _chars(value: Any) -> int:
    """Characters of all texts in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_chars, value.values()))
    return sum(map(_chars, value)) if isinstance(value, list) else 0


def _model_context(directory: Path) -> int | None:
    config = _read(directory / "config.json")
    text = config.get("text_config")
    part: dict[str, Any] = text if isinstance(text, dict) and "max_position_embeddings" in text else config
    length = part.get("max_position_embeddings")
    if type(length) is not int or length < 1:
        return None
    scaling = part.get("rope_parameters") or part.get("rope_scaling")
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    return int(length * max(1, factor)) if isinstance(factor, int | float) else length


def _longest_token(directory: Path) -> int:
    tokenizer = _read(directory / "tokenizer.json")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # of a BPE or WordPiece vocabulary the keys are the tokens, of a unigram's entries the first members
    names = list(vocabulary) if isinstance(vocabulary, dict) else [entry[0] for entry in vocabulary or ()]
    names += [token.get("content", "") for token in added or ()]
    return max((len(name) for name in names if isinstance(name, str)), default=0) or TOKEN_CHARS


def _read(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
