"""Prepares a ladder: the data report, three parts of the data that share no near-duplicate, and what to try."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.dataset.chat import GROUP
from adapters.dataset.formats import Format, split_lines
from trainer.base_model import chat_template
from trainer.data.findings import closed_answers
from trainer.data.format import Example
from trainer.data.formats import read_dataset
from trainer.data.prepare import DataRules, Prepared, Source, inspect
from trainer.data.report import Report
from trainer.data.split import answer
from trainer.errors import DataInvalid, Problem
from trainer.evaluate.arms import ANSWER_LENGTH_FACTOR, EVERYONE, EVERYONES, answer_list_fits, max_answer_tokens, thinks
from trainer.evaluate.metrics.choose import FREE_TEXT, choose_primary
from trainer.ladder.instructions import candidates
from trainer.ladder.parts import divide, faults, groups_of, learning_subsets, lines_of, text_of
from trainer.ladder.spec import DataFacts

CHANGING_FACTS: Final = "changing_facts"
NOISY: Final = frozenset({"unrelated_labels"})
PROMPT_SHARE: Final = 0.25
"""Largest share of the context that fixed examples may take."""
NO_ROOM: Final = "no example fits into the context beside the instructions, the question and the answer"
NOBODYS: Final = (
    "fixed examples are shown to everyone, and no example to learn from is everyone's: give those that anyone may see "
    f'the value "{EVERYONE}" in `filters` for {{}}'
)
"""Why no example may be shown to all; of the required filters."""
GROUP_FILTER: Final = (
    f"`filters` has `{GROUP}`, by which a ladder keeps an example from its own answer: use another name, such as "
    "`customer`"
)
_DIFFERENT: Final = "different system messages"
Rows = Callable[[Example], dict[str, Any]]
FIXED_EXAMPLES: Final = 8
FIXED_PROSE_EXAMPLES: Final = 4


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The parts of the data as JSONL files of chat examples, and what was found in them.

    Attributes:
        parts: The content of each part's file: `training`, `choosing` (may be empty), `held_out`, and for the learning
            curve `half`, `quarter` and `cleanest_half` of the training part.
        counts: The number of examples of each.
        cleaner: See `LadderPlan`.
        shown: The examples of the rung with fixed examples; ``why_none_shown``: the reason if there are none.
        required_filters: See `LadderPlan`.
    """

    report: Report
    parts: dict[str, bytes]
    counts: dict[str, int]
    cleaner: int
    facts: DataFacts
    instructions: tuple[str, ...]
    answers: tuple[str, ...]
    metric: dict[str, Any]
    why_metric: str
    common_answer: float
    max_tokens: int
    teacher_max_tokens: int
    shown: tuple[Example, ...]
    why_none_shown: str
    required_filters: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_data(
    name: str,
    content: bytes,
    *,
    base_dir: Path,
    context: int,
    given: Sequence[str],
    quick: bool,
    check: Callable[[], None],
) -> PreparedData:
    """Check and divide a training file.

    Args:
        name, content: The file's name, for messages, and its bytes.
        base_dir: The base, for its tokenizer and template.
        context: The engine's context in tokens.
        given: The client's own instructions. ``quick``: fewer examples.
        check: Called between the steps; may raise to stop.

    Raises:
        DataInvalid, DataTooSmall: As `trainer.data.prepare.inspect`, or there are too few examples to compare on.
        TemplateUnsupported: The base's chat template cannot be trained on.
    """
    inspected, count = _inspect(name, content, base_dir, context, check)
    examples = inspected.training.examples
    system = _system_messages(examples)
    held_out, choosing, training, notes = divide(examples, quick=quick)
    check()
    counts = closed_answers(examples)
    answers = tuple(sorted(counts or ()))
    choice = choose_primary(training)
    # to go on beyond the longest answer of the data raises no score of free text; it is most of what a weak base says
    factor = 1 if quick and choice.primary.name in FREE_TEXT else ANSWER_LENGTH_FACTOR
    max_tokens = _max_tokens(inspected, base_dir, context, metric=choice.primary.name, factor=factor)
    beside = max(len(sequence.tokens) for sequence in inspected.sequences) + max_tokens
    if answers and not answer_list_fits(answers, beside, count=count, context=context):
        answers, notes = (), [*notes, "the list of answers does not fit into the context, so no rung is told it"]
    # an example's own system message takes precedence over a version's: where they differ there is none to try
    required = filters_of_all(examples)
    public = for_everyone(training, required)
    prompts = () if system is _DIFFERENT else candidates(training, given, answers, system, quotable=public)
    room = min(PROMPT_SHARE * context, context - beside - max(map(count, prompts), default=0))
    subsets = {} if quick else learning_subsets(training, faults(inspected.report))
    files, counts_of = _files({"training": training, **subsets}, choosing, held_out, _rows(name, content, system))
    return PreparedData(
        report=inspected.report,
        parts=files,
        counts=counts_of,
        cleaner=len(lines_of(subsets.get("cleanest_half", ())) - lines_of(subsets.get("half", ()))),
        facts=_facts(inspected.report),
        instructions=prompts,
        answers=answers,
        metric={"name": choice.primary.name},
        why_metric=choice.why,
        common_answer=_common_share(held_out) if answers else 0.0,
        max_tokens=max_tokens,
        teacher_max_tokens=_max_tokens(inspected, base_dir, context),
        shown=fixed_examples(public, closed=bool(counts), room=int(room), count=count),
        why_none_shown=NO_ROOM if public else NOBODYS.format(" and ".join(f"`{name}`" for name in required)),
        required_filters=required,
        notes=tuple(notes),
    )


def _max_tokens(
    inspected: Prepared,
    base_dir: Path,
    context: int,
    *,
    metric: str | None = None,
    factor: int = ANSWER_LENGTH_FACTOR,
) -> int:
    """The longest answer that a rung may give, in tokens; without a metric, that a teacher may give."""
    longest = max(sum(sequence.trained) for sequence in inspected.sequences)
    return max_answer_tokens(longest, context, metric=metric, thinking=thinks(chat_template(base_dir)), factor=factor)


def filters_of_all(examples: Sequence[Example]) -> tuple[str, ...]:
    """The attributes of which the examples give values, by name.

    Raises:
        DataInvalid: Some examples give a value of an attribute and others none. A version that did not demand it would
            show one caller what is another's.
    """
    names = tuple(sorted({name for example in examples for name in example.filters}))
    problems = []
    for example in examples:
        if missing := [name for name in names if name not in example.filters]:
            name = missing[0]
            reason = f'no value of `{name}`, which other lines give: add "filters": {{"{name}": …}} to the line'
            problems.append(Problem(example.line, f"{reason}; {EVERYONES}"))
    if problems:
        raise DataInvalid(problems)
    return names


def for_everyone(examples: Sequence[Example], required: Sequence[str]) -> tuple[Example, ...]:
    """The examples that a version may show to every caller: those of nobody in particular by the required filters. A
    version's prompt is not retrieved, so nothing in it is held back from anyone."""
    return tuple(each for each in examples if all(each.filters.get(name) == EVERYONE for name in required))


def _files(
    learnt_from: Mapping[str, Sequence[Example]],
    choosing: Sequence[Example],
    held_out: Sequence[Example],
    row: Rows,
) -> tuple[dict[str, bytes], dict[str, int]]:
    """Each part's file, and the number of its examples. What is learnt from carries its groups."""
    parts = {"choosing": choosing, "held_out": held_out}
    grouped = groups_of(learnt_from["training"])
    files = {part: _file(chosen, row) for part, chosen in parts.items()}
    files |= {part: _file(chosen, row, grouped) for part, chosen in learnt_from.items()}
    return files, {part: len(chosen) for part, chosen in (*parts.items(), *learnt_from.items())}


def _inspect(
    name: str, content: bytes, base_dir: Path, context: int, check: Callable[[], None]
) -> tuple[Prepared, Callable[[str], int]]:
    """The file, checked and rendered with the base's template, and what counts a text's tokens."""
    from trainer.data.render import Renderer, stop_tokens
    from trainer.tune.model import load_generation_config, load_tokenizer

    tokenizer = load_tokenizer(base_dir)
    stops = stop_tokens(tokenizer, load_generation_config(base_dir))
    renderer = Renderer(tokenizer, stop_tokens=stops, max_length=context)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    # the ladder divides the data itself: nothing is held out here
    rules = DataRules(overflow="drop", held_out_share=0.0, validation_share=0.0, pairs=False)
    inspected = inspect(Source(name, content), None, renderer, rules, check=check)
    named = [example.line for example in inspected.training.examples if GROUP in example.filters]
    if named:
        raise DataInvalid([Problem(line, GROUP_FILTER) for line in named])
    return inspected, count


def _rows(name: str, content: bytes, system: str | None) -> Rows:
    """Gives an example as a line of chat data: the client's own if the file has that format. Without a system message
    that all examples share, which the versions have instead: a question's own would be used in place of theirs."""
    form, _ = read_dataset(name, content)
    raw = _raw_lines(content) if form is Format.CHAT else None

    def row(example: Example) -> dict[str, Any]:
        made: dict[str, Any] = _as_chat(example) if raw is None else json.loads(raw[example.line - 1])
        if system is not _DIFFERENT:
            made["messages"] = [each for each in made["messages"] if each.get("role") not in ("system", "developer")]
        return made

    return row


def _as_chat(example: Example) -> dict[str, Any]:
    """An example of another format as a line of chat data."""
    row: dict[str, Any] = {"messages": [{"role": each.role, "content": each.content} for each in example.messages]}
    for made, message in zip(row["messages"], example.messages, strict=True):
        made |= {"weight": 0} if message.role == "assistant" and not message.trained else {}
    row |= {} if example.group is None else {"group": example.group}
    return row | ({"filters": dict(example.filters)} if example.filters else {})


def _system_messages(examples: Sequence[Example]) -> str | None:
    """The system message that every example has; None if none has any; `_DIFFERENT` if they are not all alike."""
    texts = {
        next((message.content for message in each.messages if message.role == "system"), None) for each in examples
    }
    return texts.pop() if len(texts) == 1 else _DIFFERENT


def _raw_lines(content: bytes) -> list[str]:
    return [line.decode("utf-8-sig") if isinstance(line, bytes) else line for line in split_lines(content)]


def _file(examples: Sequence[Example], row: Rows, groups: Mapping[int, str] | None = None) -> bytes:
    """The examples as a JSONL file of chat data. ``groups``: by line, in place of the examples' own."""
    rows = (row(each) | ({} if groups is None else {"group": groups[each.line]}) for each in examples)
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows).encode()


def _facts(report: Report) -> DataFacts:
    by_code = Counter({finding.code: finding.count for finding in report.findings})
    return DataFacts(
        examples=report.examples,
        changing_facts=by_code[CHANGING_FACTS],
        noisy_labels=any(finding.code in NOISY for finding in report.findings),
        warnings=tuple(finding.message for finding in report.findings if finding.severity != "note"),
    )


def _common_share(held_out: Sequence[Example]) -> float:
    (_, times), *_ = Counter(answer(example).strip() for example in held_out).most_common(1)
    return times / len(held_out)


def fixed_examples(
    training: Sequence[Example], *, closed: bool, room: int, count: Callable[[str], int]
) -> tuple[Example, ...]:
    """The examples to show in every prompt: short ones with different answers, within `room` tokens.

    Only single-turn examples without tools are shown, since a version's settings hold pairs.
    """
    wanted = FIXED_EXAMPLES if closed else FIXED_PROSE_EXAMPLES
    pairs = [example for example in training if _is_pair(example)]
    counts = Counter(answer(example).strip() for example in pairs)
    # frequent answers first where they are a closed set, otherwise answers of middling length
    lengths = sorted(len(answer(example)) for example in pairs)
    middle = lengths[len(lengths) // 2] if lengths else 0

    def rank(example: Example) -> tuple[float, int, int]:
        text = answer(example).strip()
        return (-counts[text] if closed else abs(len(text) - middle), len(text_of(example)), example.line)

    chosen: list[Example] = []
    answers: set[str] = set()
    for example in sorted(pairs, key=rank):
        text = answer(example).strip()
        if text in answers:
            continue
        tokens = count(text_of(example)) + 16
        if tokens > room:
            continue
        chosen.append(example)
        answers.add(text)
        room -= tokens
        if len(chosen) == wanted:
            break
    return tuple(chosen)


def _is_pair(example: Example) -> bool:
    return [message.role for message in example.messages if message.role != "system"] == ["user", "assistant"]


def example_settings(examples: Sequence[Example]) -> list[dict[str, str]]:
    """Fixed examples as a version's `settings.examples`."""
    pairs = []
    for example in examples:
        user, reply = (message for message in example.messages if message.role != "system")
        pairs.append({"user": user.content, "assistant": reply.content})
    return pairs
