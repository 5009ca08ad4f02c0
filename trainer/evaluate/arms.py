"""The arms of a comparison: a model, how its prompt is built, and its grounding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

from pydantic import Field, model_validator

from adapters.dataset.chat import GROUP
from adapters.protocol.requests import MAX_EXAMPLES
from trainer.data.format import Example, Message
from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics.match import ExactMatch
from trainer.runs.protocol import Frozen

ANSWER_LIST_INTRO: Final = "Answer with exactly one of the following and with nothing else:"
MAX_LABEL_CHARS: Final = 100
TEMPLATE_TOKENS: Final = 16
"""Tokens that a chat template may add around one message."""
GROUNDED_NOTE: Final = "the base gets the candidate's grounding, too; perplexity is measured without passages"
BARE_BASE_NOTE: Final = (
    "the candidate has no weights: it is the base with a prompt of its own, and compared with the base without any"
)
NO_ROOM_FOR_ANSWERS: Final = (
    "the list of possible answers does not fit into the context with the longest question, so the base is not given it"
)
ANSWER_LENGTH_FACTOR: Final = 2
"""How many times longer than the longest known reference an answer may become."""
ANSWER_FORM_TOKENS: Final = 32
"""Added for what a model without training puts around an answer: a code fence, a short reason, "The answer is …"."""
THINKING_TOKENS: Final = 1024
"""Added if the base's chat template has a thinking block that cannot be turned off."""
MAX_REPEATED_CHARS: Final = 15_000
"""Longest list of answers or schema that two arms of the base are told."""
MIN_ANSWER_TOKENS: Final = 16
MAX_ANSWER_TOKENS: Final = 1024
SHOWN_LINES: Final = 5
EVERYONE: Final = "*"
"""The value of a required filter that marks, and finds, only what is everyone's."""
EVERYONES: Final = f'"{EVERYONE}" finds only what is everyone\'s'
"""What to say of an example that gives no value of a required filter."""
GROUP_REQUIRED: Final = (
    f"the version requires a filter on `{GROUP}`: nothing of an example's own `{GROUP}` is found when it is trained or "
    "judged on, lest it find its own answer, so that both together find what is everyone's alone; require an attribute "
    f"of another name, such as `customer`, or leave the field `{GROUP}` out of the lines"
)
"""Why examples with a `group` cannot be used for a version that requires a filter of that name."""
_TAG: Final = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_THINKING_SWITCH: Final = re.compile(r"(?<![\w.])(enable_thinking|thinking)\b(?!\s*=[^=])")
"""The variables that turn thinking on and off in chat templates: in most `enable_thinking`, in Granite's `thinking`."""


class ChatMessage(Frozen):
    """A message of a conversation, as a request sends it. ``content`` is empty beside ``tool_calls`` only."""

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @classmethod
    def of(cls, message: Message) -> Self:
        """From a message of a data file."""
        calls = tuple(call.sent() for call in message.tool_calls)
        return cls(
            role=message.role,
            content=message.content,
            tool_calls=calls,
            tool_call_id=message.tool_call_id,
            name=message.name,
        )

    @property
    def text(self) -> str:
        """All that the message says, its tool calls as JSON included."""
        return "\n".join(
            part for part in (self.content, calls_json(self.tool_calls) if self.tool_calls else "") if part
        )

    def sent(self) -> dict[str, Any]:
        """The message of a request."""
        return self.model_dump(exclude_defaults=True)


Conversation = tuple[ChatMessage, ...]
"""Messages that end with an assistant's."""


class Question(Frozen):
    """A held-out example: the conversation, and the author's answer. ``id`` is unique among the held-out examples.

    ``reference``: the text that answers are compared with; of an answer that calls tools, the calls as JSON
    (`adapters.dataset.tools.calls_text`), and then ``reference_calls`` has them as a message's `tool_calls`.
    ``tools``: the functions that the request declares.
    ``rejected``: in preference data the answer that is worse than the reference; None where either calls tools.
    ``group``: see `trainer.data.format.Example`.
    ``filters``: the values of the version's required filters, such as `customer`, that its request sends.
    ``examples``: the training examples that are most similar to it, the nearest first, for arms that are shown some.
    """

    id: str
    turns: tuple[ChatMessage, ...]
    reference: str
    group: str | None = None
    examples: tuple[Conversation, ...] = Field((), max_length=MAX_EXAMPLES)
    rejected: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    reference_calls: tuple[dict[str, Any], ...] = ()
    filters: dict[str, str | bool | float] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """The messages before the answer, without the system message, as one text."""
        return "\n".join(turn.text for turn in self.turns if turn.role != "system")

    @property
    def answer(self) -> ChatMessage:
        """The author's answer as a message."""
        if self.reference_calls:
            return ChatMessage(role="assistant", content="", tool_calls=self.reference_calls)
        return ChatMessage(role="assistant", content=self.reference)

    @property
    def last_message(self) -> str:
        """The text of the last message before the answer."""
        return self.turns[-1].text if self.turns else ""


def questions(examples: Sequence[Example]) -> tuple[Question, ...]:
    """Held-out examples as questions: the last message that is trained on is the reference, the line number the id."""
    return tuple(
        Question(
            id=str(example.line),
            turns=tuple(map(ChatMessage.of, example.prompt)),
            reference=example.judged.answer,
            group=example.group,
            tools=example.tools,
            reference_calls=tuple(call.sent() for call in example.judged.tool_calls),
            rejected=_rejected_text(example),
            filters=dict(example.filters),
        )
        for example in examples
    )


def _rejected_text(example: Example) -> str | None:
    rejected = example.rejected
    if rejected is None or rejected.tool_calls or example.judged.tool_calls:
        return None
    return rejected.content


class Prompt(Frozen):
    """How a question becomes messages: unchanged, or with what helps a model that was not trained.

    A question's own system message takes precedence over ``system``, as in the gateway. ``answers``, a closed set, are
    listed after the system message, and ``instructions`` follow. ``examples`` of the question's examples are earlier
    turns of the conversation, the nearest one last.
    """

    system: str | None = Field(None, min_length=1)
    answers: tuple[str, ...] = ()
    instructions: str | None = Field(None, min_length=1)
    examples: int = Field(0, ge=0, le=MAX_EXAMPLES)

    @property
    def is_plain(self) -> bool:
        """Whether the model gets nothing but the system prompt and the question."""
        return not (self.answers or self.instructions or self.examples)

    def messages(self, question: Question) -> list[dict[str, Any]]:
        """OpenAI's chat messages for a question."""
        messages = [turn.sent() for turn in question.turns]
        system_message = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else self.system
        answers_note = answer_list(self.answers) if self.answers else None
        system = "\n\n".join(text for text in (system_message, answers_note, self.instructions) if text)
        shown = [turn.sent() for example in question.examples[: self.examples][::-1] for turn in example]
        return ([{"role": "system", "content": system}] if system else []) + shown + messages


PLAIN: Final = Prompt()


def calls_json(calls: Sequence[Mapping[str, Any]]) -> str:
    """A message's `tool_calls` in the form of a reference (`adapters.dataset.tools.calls_text`).

    Arguments that are no JSON object stay the text that they are, and so equal no reference's.
    """
    return json.dumps(
        [{"name": call["function"]["name"], "arguments": _arguments(call["function"])} for call in calls],
        ensure_ascii=False,
    )


def _arguments(function: Mapping[str, Any]) -> object:
    text = function.get("arguments") or "{}"
    try:
        parsed = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text


def answer_list(answers: Sequence[str]) -> str:
    """The text that lists a closed set of answers in a system message."""
    return "\n".join([ANSWER_LIST_INTRO, *(f"- {answer}" for answer in answers)])


def answer_list_fits(answers: Sequence[str], other_tokens: int, *, count: Callable[[str], int], context: int) -> bool:
    """Whether the list of answers fits into the context together with the longest question and answer.

    Args:
        answers: The closed set.
        other_tokens: Tokens to reserve beside the list: the longest question plus the longest answer allowed.
        count: Returns a text's length in tokens.
        context: The engine's context length, in tokens.
    """
    return count(answer_list(answers)) + other_tokens + TEMPLATE_TOKENS <= context


class Arm(Frozen):
    """One side of a comparison.

    ``model``: the request's `model`: the base's served name, `name@3` or `name:live`; at an outside endpoint, a model
    that it serves. ``grounding``: the request's field, unchanged; None leaves the version's own setting. ``endpoint``:
    the name of an endpoint in the operator's settings; None is the gateway.
    """

    label: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    model: str = Field(min_length=1)
    prompt: Prompt = PLAIN
    grounding: dict[str, Any] | bool | None = None
    endpoint: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _grounded_here(self) -> Self:
        if self.endpoint is not None and self.grounding is not None:
            raise ValueError("`grounding` needs the gateway: it cannot be combined with `endpoint`")
        return self


def base_at_its_best(
    model: str,
    *,
    system: str | None,
    answers: Sequence[str] = (),
    instructions: str | None = None,
    examples: int = 0,
    grounding: Mapping[str, Any] | None = None,
) -> tuple[Arm, ...]:
    """The arms of the base with the best prompts it can have without training; the verdict is against the strongest.

    Args:
        model: The base's served name.
        system: The candidate version's system prompt, if it has one.
        answers: The closed set of answers, if there is one.
        instructions: What JSON answers must look like, if they are JSON.
        examples: How many training examples fit before each question.
        grounding: The candidate version's, if it has one: otherwise an effect of passages would count as training.

    Returns:
        The plain arm first; then one that is told the answers or the schema; then one that is shown examples, and told
        the same if that is not longer than MAX_REPEATED_CHARS.
    """
    plain = Arm(
        label=base_label(grounding), model=model, prompt=Prompt(system=system), grounding=grounding_field(grounding)
    )

    def arm(ending: str, prompt: Prompt) -> Arm:
        return plain.model_copy(update={"label": f"{plain.label} {ending}", "prompt": prompt})

    told = Prompt(system=system, answers=tuple(answers), instructions=instructions)
    arms = [plain] if told.is_plain else [plain, arm(f"told the {'answers' if answers else 'schema'}", told)]
    if examples:
        # a verdict stores all prompts: the request body that repeats it must not become too large
        is_short = len(answer_list(answers)) + len(instructions or "") <= MAX_REPEATED_CHARS
        beside = told if is_short else plain.prompt
        arms.append(arm("shown examples", beside.model_copy(update={"examples": examples})))
    return tuple(arms)


def base_label(grounding: Mapping[str, Any] | None) -> str:
    """The label of the base's first arm; it says whether the base gets the candidate's passages."""
    return "base with passages" if grounding else "base"


def grounding_field(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A version's `settings.grounding` as a request's field `grounding`, without unset options."""
    return {name: value for name, value in settings.items() if value not in (None, [])} if settings else None


def required_filters(grounding: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The attributes of which a version's grounding demands a value."""
    return tuple((grounding or {}).get("required_filters") or ())


def check_filters(questions: Sequence[Question], grounding: Mapping[str, Any] | None, name: str) -> None:
    """Check that each question gives the values that the version demands, and that these are not what it keeps out.

    Raises:
        EvaluationInvalid: One does not; the message names the attribute and the lines.
    """
    for attribute in required_filters(grounding):
        grouped = [question.id for question in questions if attribute == GROUP and question.group is not None]
        if grouped:
            raise EvaluationInvalid(
                f"{name}: {len(grouped)} of {len(questions)} held-out examples have a `{GROUP}` (lines "
                f"{_lines(grouped)}), and {GROUP_REQUIRED}"
            )
        missing = [question.id for question in questions if attribute not in question.filters]
        if missing:
            raise EvaluationInvalid(
                f"{name} requires a filter on `{attribute}` with every request, and {len(missing)} of {len(questions)} "
                f"held-out examples give no value (lines {_lines(missing)}): add "
                f'`"filters": {{"{attribute}": …}}` to each line; {EVERYONES}'
            )


def _lines(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_LINES]) + (" …" if len(ids) > SHOWN_LINES else "")


def with_filters(
    grounding: Mapping[str, Any] | bool | None,
    filters: Mapping[str, str | bool | float],
    *,
    group: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any] | bool | None:
    """An arm's `grounding` with a question's filters, joined to its own; unchanged if there are none or it is off.

    Args:
        group: The question's. Where the arm is grounded, nothing of this group is found, as in a training prompt: a
            store that holds the question as an example would show its answer.
        settings: The version's own grounding, None if it has none. Its `filters` are the arm's if that has no others: a
            request's replace them.
    """
    field = {} if isinstance(grounding, bool | None) else {**grounding}
    own = field.get("filters") or (settings or {}).get("filters")
    searches = outside_group(group, own) if group is not None and (field or settings) else own
    if grounding is False or not (filters or searches is not own):
        return grounding if isinstance(grounding, bool | None) else field
    return field | {"filters": joined_filters(filters, searches) if filters else searches}


def joined_filters(values: Mapping[str, str | bool | float], filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's `filters` that give an example's values, joined to a version's or an arm's own."""
    conditions: list[Any] = [{"type": "eq", "key": name, "value": value} for name, value in values.items()]
    return {"type": "and", "filters": conditions if filters is None else [*conditions, filters]}


def outside_group(group: str, filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """``filters``, and that nothing is found whose attribute `group` is this one."""
    others: dict[str, Any] = {"type": "ne", "key": GROUP, "value": group}
    return others if filters is None else {"type": "and", "filters": [filters, others]}


def template_switches(template: str) -> dict[str, bool]:
    """The `chat_template_kwargs` of every request of an evaluation: thinking is off if the template has the switch."""
    code = " ".join(_QUOTED.sub("", tag) for tag in _TAG.findall(template))
    return dict.fromkeys(sorted(set(_THINKING_SWITCH.findall(code))), False)


def thinks(template: str) -> bool:
    """Whether a chat template has a thinking block that no switch turns off."""
    return "<think>" in template and not template_switches(template)


def max_answer_tokens(
    longest_reference: int,
    context_tokens: int,
    *,
    metric: str | None = None,
    thinking: bool = False,
    factor: int = ANSWER_LENGTH_FACTOR,
) -> int:
    """The limit for answers, in tokens: ``factor`` times the longest known reference, and room for the form.

    Args:
        longest_reference: The longest known reference, in tokens.
        context_tokens: The engine's context, which bounds the limit.
        metric: The name of what scores the answers. With exact_match the answer itself cannot be longer than the
            reference, so only the form is added (`trainer.evaluate.reading` takes it off before the scoring). A base
            that explains itself at length would take most of the time of judging.
        thinking: The base's chat template has a thinking block that cannot be turned off.
    """
    if metric == ExactMatch.name:
        answer = longest_reference
    else:
        answer = min(max(factor * longest_reference, MIN_ANSWER_TOKENS), MAX_ANSWER_TOKENS)
    return min(answer + ANSWER_FORM_TOKENS + (THINKING_TOKENS if thinking else 0), context_tokens)
