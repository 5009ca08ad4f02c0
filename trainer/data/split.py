"""Splits off held-out examples if none are given, by groups of near-duplicate questions that stay on one side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from adapters.dataset.held_out import SHARE, held_out_target
from trainer.data.folding import fold, key
from trainer.data.format import Example, Message
from trainer.data.similar import MIN_TEMPLATES, TEMPLATE, contained, groups, merged, merged_by_keys, normalise

SEED: Final = 0
"""The same for every split: a job's own seed would hold out examples that an earlier version was trained on."""


@dataclass(frozen=True, slots=True)
class Split:
    """The indices of the examples on either side, each in file order."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split(
    examples: Sequence[Example],
    *,
    seed: int = SEED,
    share: float = SHARE,
    question_groups: Sequence[Sequence[int]] | None = None,
) -> Split:
    """Hold out about `share` of the examples, as many as `held_out_target` says, by groups of similar questions.

    A question that contains another one (`trainer.data.similar`) is in its group. Examples that name the same group,
    such as a customer, stay together as well, and so do conversations of which one teaches the answer of another one on
    the way.

    Depends on examples, seed and share alone, and a group's place on its questions alone: if the file grows or is
    reordered, nearly the same examples are held out. Nothing is held out of fewer than 2 * MIN_HELD_OUT examples, or if
    one group is so large that nothing else fits. ``question_groups``: `group_questions` of the examples, if known.
    """
    target = held_out_target(len(examples), share)
    similar = group_questions(examples) if question_groups is None else question_groups
    if target > 0:
        contents = contained([question(example) for example in examples])
        similar = merged_by_keys(similar, [{str(at), *map(str, inside)} for at, inside in enumerate(contents)])
    return set_aside(examples, target, seed=seed, part="held-out", question_groups=similar)


def set_aside(
    examples: Sequence[Example],
    target: int,
    *,
    part: str,
    seed: int = SEED,
    question_groups: Sequence[Sequence[int]] | None = None,
) -> Split:
    """Put up to ``target`` of the examples aside, by the rules of `split`; another ``part`` draws others."""
    everything = tuple(range(len(examples)))
    if target == 0:
        return Split(everything, ())
    normalised = [normalise(question(example)) for example in examples]
    held: list[int] = []
    # by the hash of one question per group: the smallest of all its hashes would favour large groups
    similar = group_questions(examples) if question_groups is None else question_groups
    conversations, kept = _conversations(examples)
    together = merged_by_keys(merged(similar, [example.group for example in examples]), conversations)
    free = [group for group in together if kept.isdisjoint(group)]
    for group in sorted(free, key=lambda group: _draw_key(seed, part, min(normalised[index] for index in group))):
        if len(held) + len(group) <= target:
            held += group
    held_out = set(held)
    return Split(tuple(index for index in everything if index not in held_out), tuple(sorted(held)))


def _conversations(examples: Sequence[Example]) -> tuple[list[set[str]], set[int]]:
    """What keeps examples on one side because the answer of one is an earlier answer that another one teaches.

    Returns:
        Keys for each example: two that share one stay together. And the indices of examples that are not held out:
        their prompt is how many conversations begin ("Hello"), which would otherwise all be one group.
    """
    prompts = [key(fold(question(example))) for example in examples]
    judged = set(prompts)
    taught = [_earlier_prompts(example) & judged for example in examples]
    times = Counter(prompt for earlier in taught for prompt in earlier)
    openings = {prompt for prompt, count in times.items() if count > max(MIN_TEMPLATES - 1, TEMPLATE * len(examples))}
    shared = [{prompt, *earlier} & times.keys() - openings for prompt, earlier in zip(prompts, taught, strict=True)]
    return shared, {index for index, prompt in enumerate(prompts) if prompt in openings}


def _earlier_prompts(example: Example) -> set[str]:
    """Keys of what stands before each trained answer of the conversation but the judged one."""
    prompt = example.prompt
    return {
        key(fold(_text(prompt[:at])))
        for at, message in enumerate(prompt)
        if message.role == "assistant" and message.trained
    }


def group_questions(examples: Sequence[Example]) -> list[list[int]]:
    """The indices of the examples, grouped by near-duplicate questions."""
    return groups([question(example) for example in examples])


def _draw_key(seed: int, part: str, normalised: str) -> str:
    """The sort key of a question: pseudo-random, and the same in every file."""
    return hashlib.sha256(f"{seed}/{part}/{normalised}".encode()).hexdigest()


def question(example: Example) -> str:
    """The messages before the judged answer, without the system message, as one text."""
    return _text(example.prompt)


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message.text for message in messages if message.role != "system")


def answer(example: Example) -> str:
    """The judged answer: the last message that is trained on; its tool calls as JSON if it has any."""
    return example.judged.answer
