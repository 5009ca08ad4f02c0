"""What is compared: a model, a way to build its prompt, and a grounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.data.format import Example

ANSWER_LIST_INTRO: Final = "Answer with exactly one of the following and with nothing else:"
MAX_LABEL_CHARS: Final = 100
TEMPLATE_TOKENS: Final = 16
"""What a chat template may put around one system message more."""
GROUNDED_NOTE: Final = "the base is asked with the candidate's grounding, too; perplexity is measured without passages"
NO_ROOM_FOR_ANSWERS: Final = (
    "a list of the possible answers would leave no room for the longest question, so the base is not told them"
)
ANSWER_LENGTH_FACTOR: Final = 2
"""How much longer than the longest answer that was taught an answer may become."""
MIN_ANSWER_TOKENS: Final = 16
MAX_ANSWER_TOKENS: Final = 1024


class Frozen(BaseModel):
    """Plain data that travels as JSON."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChatMessage(Frozen):
    """A message of a conversation."""

    role: str
    content: str


class Question(Frozen):
    """A held-out example: what is asked, and the answer that its author gave. ``id`` is unique among the held-out."""

    id: str
    turns: tuple[ChatMessage, ...]
    reference: str

    @property
    def asked(self) -> str:
        """The last turn's text."""
        return self.turns[-1].content if self.turns else ""


def questions(examples: Sequence[Example]) -> tuple[Question, ...]:
    """Held-out examples as questions; the last answer is the reference, `id` the line in the file."""
    return tuple(
        Question(
            id=str(example.line),
            turns=tuple(ChatMessage(role=turn.role, content=turn.content) for turn in example.messages[:-1]),
            reference=example.messages[-1].content,
        )
        for example in examples
    )


class Prompt(Frozen):
    """How a question becomes messages: as it is, with a system prompt, or told the answers that are possible.

    A question with a system message of its own keeps it, as the gateway keeps it from a version's. ``answers``, a
    closed set, are listed behind whatever system message there is.
    """

    system: str | None = Field(None, min_length=1)
    answers: tuple[str, ...] = ()

    def messages(self, question: Question) -> list[dict[str, str]]:
        """OpenAI's chat messages for a question."""
        turns = [turn.model_dump() for turn in question.turns]
        own = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else self.system
        told = answer_list(self.answers) if self.answers else None
        system = "\n\n".join(part for part in (own, told) if part)
        return ([{"role": "system", "content": system}] if system else []) + turns


PLAIN: Final = Prompt()


def answer_list(answers: Sequence[str]) -> str:
    """What stands in the system message of an arm that is told a closed set of answers."""
    return "\n".join([ANSWER_LIST_INTRO, *(f"- {answer}" for answer in answers)])


def answer_list_fits(answers: Sequence[str], beside: int, *, count: Callable[[str], int], context: int) -> bool:
    """Whether an arm can be told these answers: else its longest question would be refused, and nothing be compared.

    Args:
        answers: The closed set.
        beside: What must fit beside the list: the longest question and the longest answer that is allowed, in tokens.
        count: Gives a text's length in tokens.
        context: The engine's, in tokens.
    """
    return count(answer_list(answers)) + beside + TEMPLATE_TOKENS <= context


class Arm(Frozen):
    """One side of a comparison.

    ``model`` is what the request names: `base`'s served name, `name@3`, `name:live`; at an outside endpoint, whatever
    that knows. ``grounding`` goes into the request as it is; None leaves the version's own setting. ``endpoint`` names
    an endpoint of the operator's settings; None is the gateway.
    """

    label: str = Field(min_length=1, max_length=MAX_LABEL_CHARS)
    model: str = Field(min_length=1)
    prompt: Prompt = PLAIN
    grounding: dict[str, Any] | bool | None = None
    endpoint: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _grounded_here(self) -> Self:
        if self.endpoint is not None and self.grounding is not None:
            raise ValueError("grounding belongs to the gateway: an outside endpoint has none")
        return self


def base_at_its_best(
    model: str, *, system: str | None, answers: Sequence[str] = (), grounding: Mapping[str, Any] | None = None
) -> tuple[Arm, ...]:
    """The base as well as one could have it without training; the verdict is against the strongest of these arms.

    Args:
        model: The base's served name.
        system: The candidate version's system prompt, if it has one.
        answers: The closed set of answers, where there is one.
        grounding: The candidate version's, if it has one: else passages would count as what was learnt.
    """
    asked = grounding_field(grounding)
    plain = Arm(label=base_label(grounding), model=model, prompt=Prompt(system=system), grounding=asked)
    if not answers:
        return (plain,)
    told = Prompt(system=system, answers=tuple(answers))
    return plain, Arm(label=f"{plain.label} told the answers", model=model, prompt=told, grounding=asked)


def base_label(grounding: Mapping[str, Any] | None) -> str:
    """What the base's first arm is called; one with the candidate's passages says so."""
    return "base with passages" if grounding else "base"


def grounding_field(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A version's `settings.grounding` as a request's field `grounding`: what stands open there is left out."""
    return {name: value for name, value in settings.items() if value not in (None, [])} if settings else None


def max_answer_tokens(longest: int, context: int) -> int:
    """How long an answer may become, in tokens: twice the longest that is known, and no longer than the context."""
    return min(max(ANSWER_LENGTH_FACTOR * longest, MIN_ANSWER_TOKENS), MAX_ANSWER_TOKENS, context)
