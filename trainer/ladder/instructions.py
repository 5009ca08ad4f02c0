"""Candidates for the system prompt of the rung with instructions, made from the training examples alone.

A poor prompt makes a LoRA look better than it is. So the base gets what an engineer would write after reading the data:
the closed set of answers or the schema is told where there is one; for free text, what the answers have in common is
described. Which of the candidates is used is decided by their scores on a part of the data that nothing else is
measured on.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from adapters.protocol.requests import MAX_PROMPT_CHARS
from trainer.data.format import Example
from trainer.data.split import answer
from trainer.evaluate.arms import answer_list
from trainer.evaluate.base_prompts import json_instructions
from trainer.evaluate.metrics.structure import NOT_JSON, parsed

MAX_CANDIDATES: Final = 6
COMMON: Final = 0.6
"""Share of the answers that must have a trait for the instructions to ask for it."""
SHOWN_ANSWERS: Final = 3
MIN_AFFIX_CHARS: Final = 4
_SENTENCE: Final = re.compile(r"[.!?…]+(?:\s|$)")


def candidates(
    examples: Sequence[Example],
    given: Sequence[str],
    answers: Sequence[str],
    common_prompt: str | None,
    *,
    quotable: Sequence[Example],
) -> tuple[str, ...]:
    """The system prompts to try, without duplicates; never empty.

    Args:
        examples: The training part.
        given: The client's own.
        answers: The closed set of answers, or empty.
        common_prompt: The system prompt that every example has.
        quotable: The examples whose answers a prompt that everyone gets may quote.
    """
    texts = [answer(example) for example in examples]
    made: list[str] = [*given, *([common_prompt] if common_prompt else [])]
    task = common_prompt or "Answer the user's message."
    if answers:
        made.append(f"{task}\n\n{answer_list(answers)}")
        made.append(
            "You are a classifier. Read the message and reply with the one label that fits it best, exactly as it is "
            f"written here, and nothing else.\n\n{answer_list(answers)}"
        )
    elif all(parsed(text) is not NOT_JSON for text in texts):
        made.append(f"{task}\n\n{json_instructions(texts)}")
    else:
        traits = describe(texts)
        made.append(f"{task} {traits}")
        if typical := _typical([answer(example) for example in quotable]):
            made.append(f"{task} {traits}\n\nThis is how answers sound:\n\n" + "\n\n".join(typical))
    fitting = (text for text in made if len(text) <= MAX_PROMPT_CHARS)
    return tuple(dict.fromkeys(fitting))[:MAX_CANDIDATES] or (task,)


def describe(texts: Sequence[str]) -> str:
    """What the answers have in common, as instructions: length, sentences, the same beginning or ending."""
    words = sorted(len(text.split()) for text in texts)
    low, middle, high = words[len(words) // 10], round(statistics.median(words)), words[-1 - len(words) // 10]
    parts = [f"Write about {middle} words ({low} to {high})."]
    sentences = statistics.median(len(_SENTENCE.findall(text)) or 1 for text in texts)
    parts.append("Write one sentence." if sentences <= 1 else f"Write about {round(sentences)} sentences.")
    if ending := _common_affix([text[::-1] for text in texts])[::-1].strip():
        parts.append(f"End with: {ending}")
    if beginning := _common_affix(list(texts)).strip():
        parts.append(f"Begin with: {beginning}")
    if _share(texts, lambda text: "!" not in text) >= 1 - 1e-9:
        parts.append("Never use an exclamation mark.")
    if _share(texts, lambda text: bool(re.search(r"^\s*[-*•\d]", text, re.MULTILINE))) <= 0:
        parts.append("Do not use lists.")
    return " ".join(parts)


def _common_affix(texts: list[str]) -> str:
    """The longest beginning that at least COMMON of the texts share; empty below MIN_AFFIX_CHARS."""
    heads = Counter(text[:MIN_AFFIX_CHARS] for text in texts)
    head, times = heads.most_common(1)[0]
    if times < COMMON * len(texts) or len(head.strip()) < 2:
        return ""
    sharing = [text for text in texts if text.startswith(head)]
    size = MIN_AFFIX_CHARS
    while len({text[: size + 1] for text in sharing}) == 1 and size < len(sharing[0]):
        size += 1
    return sharing[0][:size]


def _typical(texts: Sequence[str]) -> list[str]:
    """A short, a middling and a longer answer."""
    by_length = sorted(set(texts), key=lambda text: (len(text), text))
    positions = {
        round(at * (len(by_length) - 1) / (SHOWN_ANSWERS + 1))
        for at in range(1, min(SHOWN_ANSWERS, len(by_length)) + 1)
    }
    return [by_length[position] for position in sorted(positions)]


def _share(texts: Sequence[str], has: Callable[[str], bool]) -> float:
    return sum(map(has, texts)) / len(texts)
