"""Prepares a data file for training: reads, checks, splits and renders it, and reports on it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from adapters.dataset.formats import Format
from adapters.dataset.held_out import MAX_SHARE, SHARE, describe_shortage, share_needed, validation_target
from adapters.protocol.reports import AnswerShare, ExampleLengths, ExamplePiece, ShownExample, ValidationExamples
from adapters.protocol.requests import Overflow
from trainer.data import findings
from trainer.data.answer_faults import answer_faults, changing_facts
from trainer.data.format import Dataset, Example
from trainer.data.formats import read_dataset
from trainer.data.label_noise import label_noise
from trainer.data.paraphrases import near_contradictions
from trainer.data.render import Renderer, TokenSequence
from trainer.data.rendered_part import RenderedPart, render_part, too_long, tools_unsupported
from trainer.data.report import TOO_FEW_HELD_OUT, Finding, HeldOut, Report, describe_size
from trainer.data.split import SEED, answer, group_questions, set_aside, split
from trainer.data.suite_overlap import suite_overlap
from trainer.errors import DataInvalid, DataRefused, DataTooSmall, Problem

MIN_EXAMPLES = 10
"""The same as OpenAI's minimum."""
SHOWN_EXAMPLES = 3
SHOWN_ANSWERS = 100

Groups = Sequence[Sequence[int]]
"""Indices of examples, grouped by near-duplicate questions."""
HeldOutSource = Literal["given", "split", "none"]


@dataclass(frozen=True, slots=True)
class Source:
    """A data file: its name and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class DataRules:
    """How a file is checked.

    ``overflow``: what becomes of examples longer than `max_length`. ``strict``: turn warnings into refusals.
    ``held_out_share``: the share of examples to split off if no held-out file is given; ``held_out_lines`` names the
    lines instead, if an earlier split decided them. ``min_held_out``: the number that a pass needs.
    ``validation_share``: the share of the training examples that is set aside to find the best epoch, None to choose;
    ``validation_lines`` as ``held_out_lines``. ``pairs``: whether the file must have the preference format; None if it
    may have any.
    """

    overflow: Overflow = "refuse"
    strict: bool = False
    held_out_share: float = SHARE
    seed: int = SEED
    held_out_lines: tuple[int, ...] | None = None
    min_held_out: int = 0
    validation_share: float | None = None
    validation_lines: tuple[int, ...] | None = None
    pairs: bool | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The training and held-out examples, also as tokens, and the quality report.

    ``validation_sequences``: the part of the training file that chooses the best epoch; empty if there is none.
    """

    report: Report
    training: Dataset
    held_out: tuple[Example, ...]
    sequences: tuple[TokenSequence, ...]
    held_out_sequences: tuple[TokenSequence, ...]
    validation_sequences: tuple[TokenSequence, ...] = ()


def prepare(
    training: Source,
    held_out: Source | None,
    renderer: Renderer,
    rules: DataRules,
    *,
    check: Callable[[], None] = lambda: None,
) -> Prepared:
    """Check a training file, and a held-out file if there is one, and prepare their examples.

    Args:
        check: Called between the steps and before every rendered example; may raise to stop.

    Raises:
        DataInvalid: Lists every invalid line with its reason.
        DataTooSmall: Fewer than MIN_EXAMPLES.
        DataRefused: The report has a refusal; the exception carries the report.
        TemplateUnsupported: The base's chat template cannot be trained on exactly.
    """
    prepared = inspect(training, held_out, renderer, rules, check=check)
    if prepared.report.refused:
        raise DataRefused(prepared.report)
    return prepared


def inspect(
    training: Source,
    held_out: Source | None,
    renderer: Renderer,
    rules: DataRules,
    *,
    check: Callable[[], None] = lambda: None,
) -> Prepared:
    """The same as `prepare`, but returns a refused report, too. Raises the same, except DataRefused."""
    kind, data = _read(training, rules, min_examples=MIN_EXAMPLES)
    check()
    given = None if held_out is None else _read_held_out(held_out, rules)
    similar = _similar_questions(data, given, rules)
    check()
    counts = findings.closed_answers(data.examples)
    problems = _inspect_examples(data, counts, similar, check)
    trained, unseen, source = _divide(data, given, rules, similar)
    check()
    if given is not None:
        unseen, overlapping = _without_trained(trained, given)
        problems += overlapping
    problems += tools_unsupported(data.examples, renderer, "training")
    problems += tools_unsupported(given.examples, renderer, "held_out") if given is not None else []
    train_part, unseen_part, of_lengths = _render(trained, unseen, held_out, renderer, rules, check)
    problems += of_lengths
    if not train_part.sequences and not any(finding.severity == "refused" for finding in problems):
        raise DataTooSmall(f"{training.name} has no examples left to train on")
    validation = _validation_lines(train_part.examples, rules, given=given is not None)
    problems += _too_few_held_out(data, len(unseen_part.examples), source, rules, similar)
    problems += findings.split_turns(Counter(sequence.line for sequence in train_part.sequences))
    sequences = [sequence for sequence in train_part.sequences if sequence.line not in validation]
    validated = [sequence for sequence in train_part.sequences if sequence.line in validation]
    trained_on = tuple(example for example in train_part.examples if example.line not in validation)
    report = Report(
        file=data.name,
        sha256=data.sha256,
        format=kind.value,
        examples=len(data.examples),
        trained_on=len(trained_on),
        dropped=len(train_part.long) + len(unseen_part.long),
        shortened=len(train_part.shortened) + len(unseen_part.shortened),
        held_out=_held_out(len(unseen_part.examples), unseen, source, rules),
        validation=ValidationExamples(examples=len(validation), lines=tuple(sorted(validation))) if validated else None,
        lengths=_lengths(sequences),
        max_length=renderer.max_length,
        findings=tuple(_as_refusals(problems) if rules.strict else problems),
        system_prompt=findings.common_system_prompt(data.examples),
        answers=_answer_shares(counts),
        distinct_answers=len({answer(example).strip() for example in data.examples}),
        shown=tuple(show(sequence, renderer) for sequence in _spread(sequences)),
        size=describe_size(len(trained_on), len(counts or ()), counts is not None),
    )
    return Prepared(
        report,
        Dataset(data.name, data.sha256, trained_on),
        unseen_part.examples,
        tuple(sequences),
        unseen_part.sequences,
        tuple(validated),
    )


def _without_trained(trained: Sequence[Example], given: Dataset) -> tuple[tuple[Example, ...], list[Finding]]:
    """The examples of a held-out file that are not trained on, and the findings about that file."""
    overlap = findings.overlap(trained, given.examples)
    unseen = tuple(example for example in given.examples if example.line not in overlap.left_out)
    about = findings.personal(given.examples, "held_out") + findings.ignored_keys(given, "held_out")
    return unseen, overlap.findings + about


def _render(
    trained: Sequence[Example],
    unseen: Sequence[Example],
    held_out: Source | None,
    renderer: Renderer,
    rules: DataRules,
    check: Callable[[], None],
) -> tuple[RenderedPart, RenderedPart, list[Finding]]:
    """The examples to train on and the held-out ones as tokens, and the findings about examples that are too long."""
    train_part = render_part(trained, renderer, rules.overflow, check)
    with _blame_held_out(held_out):
        unseen_part = render_part(unseen, renderer, rules.overflow, check, held_out=True)
    unseen_file: Literal["training", "held_out"] = "training" if held_out is None else "held_out"
    problems = too_long(renderer, train_part, rules.overflow, "training")
    return train_part, unseen_part, problems + too_long(renderer, unseen_part, rules.overflow, unseen_file)


def _held_out(usable: int, drawn: Sequence[Example], source: HeldOutSource, rules: DataRules) -> HeldOut:
    """What the report says of the held-out examples; the lines of a split, so that it can be repeated.

    Args:
        usable: How many of them are short enough to be asked.
        drawn: All, those that are too long included: dropped as held out, none of them may be trained on.
    """
    is_split = source == "split"
    return HeldOut(
        examples=usable,
        source=source,
        seed=rules.seed if is_split else None,
        lines=tuple(example.line for example in drawn) if is_split else (),
    )


def _read(file: Source, rules: DataRules, *, min_examples: int = 1) -> tuple[Format, Dataset]:
    """A file's format and examples. Raises DataInvalid, also if the method cannot train on its format; DataTooSmall."""
    kind, data = read_dataset(file.name, file.content, min_examples=min_examples)
    if rules.pairs is None or rules.pairs == (kind is Format.PREFERENCE):
        return kind, data
    if rules.pairs:
        reason = "`method.type: dpo` needs pairs: lines with `input`, `preferred_output` and `non_preferred_output`"
    else:
        reason = "the line has the preference format, which only `method.type: dpo` trains on"
    raise DataInvalid([Problem(1, f"{file.name} has the format {kind.value}: {reason}")])


def _validation_lines(examples: Sequence[Example], rules: DataRules, *, given: bool) -> frozenset[int]:
    """The lines of the training examples that are set aside to find the best epoch, by groups as in the split."""
    if rules.validation_lines is not None:
        return frozenset(rules.validation_lines)
    target = validation_target(len(examples), rules.validation_share, given=given)
    parts = set_aside(examples, target, part="validation", seed=rules.seed)
    return frozenset(examples[index].line for index in parts.held_out)


def _similar_questions(data: Dataset, given: Dataset | None, rules: DataRules) -> Groups | None:
    """The training examples, then those of the held-out file, by near-duplicate questions; None if an earlier check has
    divided the file."""
    if given is None and rules.held_out_lines is not None:
        return None
    return group_questions((*data.examples, *(given.examples if given is not None else ())))


def _inspect_examples(
    data: Dataset, counts: Counter[str] | None, similar: Groups | None, check: Callable[[], None]
) -> list[Finding]:
    """The findings about the training file's examples, whichever of them are held out."""
    examples = data.examples
    problems = findings.ignored_keys(data) + findings.duplicates(examples)
    check()
    if similar is not None:
        problems += near_contradictions(examples, similar, closed=counts is not None)
        check()
    problems += findings.personal(examples)
    check()
    problems += answer_faults(examples) + changing_facts(examples)
    check()
    problems += suite_overlap(examples)
    check()
    if counts is not None:
        problems += findings.balance(examples, counts) + label_noise(examples)
    return problems


def _too_few_held_out(
    data: Dataset, held_out: int, source: HeldOutSource, rules: DataRules, similar: Groups | None
) -> list[Finding]:
    """A warning if no version can pass for want of held-out examples, with the ways out that the real split gives."""
    if held_out >= rules.min_held_out:
        return []
    message = describe_shortage(
        held_out,
        rules.min_held_out,
        source="given" if source == "given" else "split",
        examples=len(data.examples),
        share=rules.held_out_share,
        possible_share=None if source == "given" or similar is None else _possible_share(data, rules, similar),
    )
    return [findings.finding(TOO_FEW_HELD_OUT, message)]


def _possible_share(data: Dataset, rules: DataRules, similar: Groups) -> float | None:
    """A share with which the split holds out enough; near-duplicates may need a larger one than `share_needed`."""
    share = share_needed(len(data.examples), rules.min_held_out)
    for larger in () if share is None else (share, MAX_SHARE):
        parts = split(data.examples, seed=rules.seed, share=larger, question_groups=similar)
        if len(parts.held_out) >= rules.min_held_out:
            return larger
    return None


def _answer_shares(counts: Counter[str] | None) -> tuple[AnswerShare, ...]:
    most_common = counts.most_common(SHOWN_ANSWERS) if counts is not None else ()
    return tuple(AnswerShare(answer=text, examples=times) for text, times in most_common)


def show(sequence: TokenSequence, renderer: Renderer) -> ShownExample:
    """A rendered example as text, in segments of trained and untrained tokens."""
    runs = groupby(zip(sequence.tokens, sequence.trained, strict=True), key=lambda pair: pair[1])
    pieces = [ExamplePiece(text=renderer.text([token for token, _ in run]), trained=trained) for trained, run in runs]
    return ShownExample(line=sequence.line, pieces=tuple(pieces))


def _read_held_out(held_out: Source, rules: DataRules) -> Dataset:
    with _blame_held_out(held_out):
        return _read(held_out, rules)[1]


def _divide(
    data: Dataset, given: Dataset | None, rules: DataRules, similar: Groups | None
) -> tuple[tuple[Example, ...], tuple[Example, ...], HeldOutSource]:
    if given is not None:
        return data.examples, given.examples, "given"
    if rules.held_out_lines is not None:
        chosen = set(rules.held_out_lines)
    else:
        parts = split(data.examples, seed=rules.seed, share=rules.held_out_share, question_groups=similar)
        chosen = {data.examples[index].line for index in parts.held_out}
    trained = tuple(example for example in data.examples if example.line not in chosen)
    unseen = tuple(example for example in data.examples if example.line in chosen)
    return trained, unseen, "split" if unseen else "none"


@contextmanager
def _blame_held_out(held_out: Source | None) -> Iterator[None]:
    """Attribute data errors inside the block to the held-out file, if there is one."""
    try:
        yield
    except (DataInvalid, DataTooSmall) as error:
        if held_out is not None:
            error.blame_validation_file(held_out.name)
        raise


def _as_refusals(problems: Sequence[Finding]) -> list[Finding]:
    # what was requested is no fault, nor is a file from which a version is trained without a verdict
    exempt = {"dropped_too_long", "truncated", TOO_FEW_HELD_OUT}
    return [
        finding
        if finding.code in exempt or finding.severity == "note"
        else finding.model_copy(update={"severity": "refused"})
        for finding in problems
    ]


def _lengths(sequences: Sequence[TokenSequence]) -> ExampleLengths | None:
    if not sequences:
        return None
    lengths = sorted(sequence.longest for sequence in sequences)
    return ExampleLengths(
        shortest=lengths[0],
        median=round(statistics.median(lengths)),
        p95=lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        longest=lengths[-1],
        total=sum(sequence.size for sequence in sequences),
        trained=sum(sequence.size_trained for sequence in sequences),
    )


def _spread(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The first, the middle and the last sequence."""
    many = len(sequences)
    indices = sorted({round(at * (many - 1) / (SHOWN_EXAMPLES - 1)) for at in range(SHOWN_EXAMPLES)}) if many else []
    return [sequences[index] for index in indices]
