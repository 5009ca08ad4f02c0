"""One side of a data file as tokens: what fits, what was made to fit, and the findings about the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from adapters.protocol.requests import Overflow
from adapters.wording import counted
from trainer.data import findings
from trainer.data.format import Example
from trainer.data.render import Renderer, TokenSequence
from trainer.data.report import Finding
from trainer.errors import DataInvalid, ExampleTooLong, Problem


@dataclass(frozen=True, slots=True)
class RenderedPart:
    """The examples on one side that fit, as tokens, too, an example's sequences next to each other.

    ``long``: the token counts of the others, by line. ``shortened``: the lines of those that fit only without their
    oldest turns; ``cut``: without an answer's end.
    """

    examples: tuple[Example, ...]
    sequences: tuple[TokenSequence, ...]
    long: Mapping[int, int]
    shortened: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()


def render_part(
    examples: Sequence[Example],
    renderer: Renderer,
    overflow: Overflow,
    check: Callable[[], None],
    *,
    held_out: bool = False,
) -> RenderedPart:
    """The examples as tokens, shortened if the rules say so. Raises DataInvalid.

    Held-out answers are not cut: an arm would be compared with half of an answer.
    """
    kept: list[tuple[Example, tuple[TokenSequence, ...]]] = []
    long: dict[int, int] = {}
    shortened, cut = [], []
    problems: list[Problem] = []
    for example in examples:
        check()
        if example.uses_tools and not renderer.supports_tools:
            continue  # a finding refuses them by name
        try:
            try:
                kept.append((example, renderer.render(example)))
            except ExampleTooLong as error:
                fitting = renderer.shorten(example, cut_answer=not held_out) if overflow == "truncate" else None
                if fitting is None:
                    long[example.line] = error.tokens
                    continue
                kept.append((fitting.example, fitting.sequences))
                shortened.append(example.line)
                if fitting.cut:
                    cut.append(example.line)
        except DataInvalid as error:
            problems += error.problems
    if problems:
        raise DataInvalid(problems)
    return RenderedPart(
        tuple(example for example, _ in kept),
        tuple(sequence for _, sequences in kept for sequence in sequences),
        long,
        tuple(shortened),
        tuple(cut),
    )


def too_long(renderer: Renderer, part: RenderedPart, overflow: Overflow, file: findings.File) -> list[Finding]:
    problems = []
    if part.shortened:
        message = (
            f"{_longer(len(part.shortened), renderer)}, truncated as requested: {len(part.cut)} lost the end of the "
            "answer, all others only the oldest turns"
        )
        problems.append(findings.finding("truncated", message, part.shortened, file=file))
    if not part.long:
        return problems
    lengths = f"{_longer(len(part.long), renderer)}, up to {max(part.long.values())}"
    if overflow == "refuse":
        message = f"{lengths}. Raise max_length, or set overflow to drop or truncate"
        return [*problems, findings.finding("too_long", message, part.long, refused=True, file=file)]
    dropped = (
        f"{lengths}; {'it is' if len(part.long) == 1 else 'they are'} dropped, as requested"
        if overflow == "drop"
        else f"{lengths}; truncated, nothing worth training on would be left, so "
        f"{'it is' if len(part.long) == 1 else 'they are'} dropped"
    )
    return [*problems, findings.finding("dropped_too_long", dropped, part.long, file=file)]


def _longer(count: int, renderer: Renderer) -> str:
    return f"{counted(count, 'example is', 'examples are')} longer than max_length ({renderer.max_length} tokens)"


def tools_unsupported(examples: Sequence[Example], renderer: Renderer, file: findings.File) -> list[Finding]:
    """A refusal of examples with tools if the base's chat template would leave these out."""
    lines = [example.line for example in examples if example.uses_tools]
    if not lines or renderer.supports_tools:
        return []
    message = (
        f"{counted(len(lines), 'example has', 'examples have')} tools, tool calls or tool messages, which the base's "
        "chat template does not render: a request with tools would reach the model without them. Choose a base whose "
        "chat template has tools, or remove what has them"
    )
    return [findings.finding("tools_unsupported", message, lines, refused=True, file=file)]
