from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.chat_template import merged_template
from tests.support.templates import ALTERNATES, DROPS_THINKING, REFUSES_SYSTEM
from tests.unit.trainer.conftest import TEMPLATE, make_tokenizer
from trainer.data.format import Example, Message
from trainer.data.render import Renderer, TokenSequence, stop_tokens
from trainer.errors import DataInvalid, TemplateUnsupported

TOKENIZER = make_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def user(text: str) -> Message:
    return Message("user", text, trained=False)


def assistant(text: str, *, trained: bool = True) -> Message:
    return Message("assistant", text, trained=trained)


def system(text: str) -> Message:
    return Message("system", text, trained=False)


def renderer(tokenizer: Any = TOKENIZER, **options: Any) -> Renderer:
    return Renderer(tokenizer, stop_tokens={END}, **{"max_length": 4096, **options})


def one(renderer: Renderer, example: Example) -> TokenSequence:
    """The only sequence of an example."""
    (sequence,) = renderer.render(example)
    return sequence


def prompt(template: str, messages: Sequence[Message], **switches: bool) -> list[int]:
    """The tokens from which the engine generates."""
    tokens: list[int] = make_tokenizer(template).apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=True,
        return_dict=False,
        **switches,
    )
    return tokens


def spans(sequence: TokenSequence) -> list[str]:
    """The texts of the runs of trained tokens."""
    runs: list[list[int]] = []
    for index, token in enumerate(sequence.tokens):
        if sequence.trained[index]:
            if not sequence.trained[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [TOKENIZER.decode(run) for run in runs]


def test_the_answer_and_its_end_of_turn_are_trained_and_nothing_else() -> None:
    sequence = one(renderer(), Example(1, (user("hi"), assistant("Ahoy!"))))
    assert TOKENIZER.decode(sequence.tokens) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nAhoy!<|im_end|>\n"
    )
    assert spans(sequence) == ["Ahoy!<|im_end|>"]
    assert sequence.tokens[sequence.first_trained] == TOKENIZER.convert_tokens_to_ids("A")


def test_the_prompt_is_what_the_engine_renders_for_a_request() -> None:
    sequence = one(renderer(), Example(1, (user("hi"), assistant("Ahoy!"))))
    asked = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert list(sequence.tokens[: sequence.first_trained]) == asked


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda t: "<|" not in t)


@given(st.lists(st.tuples(text, text, st.booleans()), min_size=1, max_size=4), st.none() | text)
def test_any_conversation_is_masked_exactly(exchanges: list[tuple[str, str, bool]], instructions: str | None) -> None:
    exchanges[-1] = (*exchanges[-1][:2], True)
    turns = [m for q, a, trained in exchanges for m in (user(q), assistant(a, trained=trained))]
    sequence = one(renderer(system_prompt=instructions), Example(1, tuple(turns)))
    assert spans(sequence) == [f"{answer}<|im_end|>" for _, answer, trained in exchanges if trained]


def test_a_system_prompt_goes_first_where_the_example_brings_none() -> None:
    with_prompt = renderer(system_prompt="You are a sailor.")
    plain = one(with_prompt, Example(1, (user("hi"), assistant("Aye"))))
    own = one(with_prompt, Example(2, (system("You are a butler."), user("hi"), assistant("Aye"))))
    assert TOKENIZER.decode(plain.tokens).startswith("<|im_start|>system\nYou are a sailor.<|im_end|>")
    assert TOKENIZER.decode(own.tokens).startswith("<|im_start|>system\nYou are a butler.<|im_end|>")


def test_what_max_length_would_cut_is_refused_with_its_length() -> None:
    example = Example(7, (user("hi"), assistant("Ahoy!")))
    length = len(one(renderer(), example).tokens)
    assert len(one(renderer(max_length=length), example).tokens) == length
    with pytest.raises(DataInvalid, match=f"line 7: {length} tokens, but `max_length` is {length - 1}"):
        renderer(max_length=length - 1).render(example)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataInvalid, match="no token to train on"):
        renderer().render(Example(1, (user("hi"), assistant("Aye", trained=False))))


@pytest.mark.parametrize("message", [user("<|im_end|>"), assistant("a <|im_start|> b"), system("<|endoftext|>")])
def test_control_tokens_in_a_text_are_refused(message: Message) -> None:
    with pytest.raises(DataInvalid, match=f"the {message.role}'s content contains the control token"):
        renderer().render(Example(1, (message, user("hi"), assistant("Aye"))))


def test_answers_that_the_template_renders_differently_later_are_trained_in_sequences_of_their_own() -> None:
    thinking = Renderer(make_tokenizer(DROPS_THINKING), stop_tokens={END}, max_length=4096)
    exchanges = (
        user("hi"),
        assistant("Aye"),
        user("hm"),
        assistant("Nay"),
        user("so?"),
        assistant("Aye", trained=False),
    )
    last, third, first = thinking.render(Example(2, (*exchanges, user("ok"), assistant("Bye"))))
    assert [spans(each) for each in (last, third, first)] == [
        [f"<think>\n\n</think>\n\n{answer}<|im_end|>"] for answer in ("Bye", "Nay", "Aye")
    ]
    for sequence, asked in ((last, (*exchanges, user("ok"))), (third, exchanges[:3]), (first, exchanges[:1])):
        assert list(sequence.tokens[: sequence.first_trained]) == prompt(DROPS_THINKING, asked)
        assert sequence.line == 2


def test_an_answer_is_trained_where_the_engine_would_generate_it_with_thinking_switched_off() -> None:
    thinking = Renderer(make_tokenizer(DROPS_THINKING), stop_tokens={END}, max_length=4096)
    (sequence,) = thinking.render(Example(1, (user("hi"), assistant("Aye"))))
    off = prompt(DROPS_THINKING, [user("hi")], enable_thinking=False)
    assert list(sequence.tokens[: len(off)]) == off
    assert TOKENIZER.decode(sequence.tokens[len(off) :]) == "Aye<|im_end|>\n"


def test_earlier_answers_that_the_template_rewrites_are_the_context_of_later_ones() -> None:
    rewriting = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '...' }}")
    second, first = renderer(make_tokenizer(rewriting)).render(
        Example(2, (user("hi"), assistant("Aye"), user("hm"), assistant("Nay")))
    )
    assert "...<|im_end|>" in TOKENIZER.decode(second.tokens)
    assert (spans(second), spans(first)) == (["Nay<|im_end|>"], ["Aye<|im_end|>"])


def test_a_base_that_refuses_system_messages_gets_them_in_the_first_question() -> None:
    template = merged_template(REFUSES_SYSTEM)
    assert template is not None
    with_prompt = renderer(make_tokenizer(template), system_prompt="You are a sailor.")
    example = (user("hi"), assistant("Aye"), user("hm"), assistant("Nay"))
    sequence = one(with_prompt, Example(1, example))
    assert TOKENIZER.decode(sequence.tokens).startswith("<|im_start|>user\nYou are a sailor.\n\nhi<|im_end|>")
    assert spans(sequence) == ["Aye<|im_end|>", "Nay<|im_end|>"]
    own = one(renderer(make_tokenizer(template)), Example(1, (system("You are a sailor."), *example)))
    assert own == sequence


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            (user("hi"), user("there?"), assistant("Aye")),
            r"line 4: messages\[1\] \(user\): the base's chat template refuses the conversation: "
            r"Conversation roles must alternate .* two user messages follow each other; make them one",
        ),
        (
            (user("a"), assistant("b"), user("c"), assistant("d"), assistant("e")),
            r"messages\[4\] \(assistant\): .* two assistant messages follow each other; make them one",
        ),
        (
            (assistant("Ahoy", trained=False), user("hi"), assistant("Aye")),
            r"messages\[0\] \(assistant\): .* the first message after the system message must be the user's",
        ),
        (
            (system("Be kind."), user("hi"), assistant("Aye")),
            r"messages\[0\] \(system\): the base's chat template refuses the conversation: Conversation roles",
        ),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named_with_its_first_wrong_message(
    messages: tuple[Message, ...], reason: str
) -> None:
    with pytest.raises(DataInvalid, match=reason):
        renderer(make_tokenizer(ALTERNATES)).render(Example(4, messages))


def test_all_refused_conversations_are_named_at_once() -> None:
    bad = [Example(line, (user("a"), user("b"), assistant("c"))) for line in (3, 5)]
    with pytest.raises(DataInvalid) as caught:
        renderer(make_tokenizer(ALTERNATES)).render_all([Example(1, (user("hi"), assistant("Aye"))), *bad])
    assert [problem.line for problem in caught.value.problems] == [3, 5]


def test_a_template_whose_prompt_is_not_how_the_answer_begins_is_refused() -> None:
    thinking = TEMPLATE.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n(thinking){% endif %}")
    with pytest.raises(DataInvalid, match="does not render its prompt as a prefix"):
        renderer(make_tokenizer(thinking)).render(Example(1, (user("hi"), assistant("Aye"))))


def test_a_template_that_never_stops_is_refused() -> None:
    endless = TEMPLATE.replace("{{ m.content }}<|im_end|>", "{{ m.content }}")
    with pytest.raises(TemplateUnsupported, match="does not end an answer"):
        renderer(make_tokenizer(endless)).render(Example(1, (user("hi"), assistant("Aye"))))


def test_a_base_without_a_template_or_a_stop_token_is_refused() -> None:
    with pytest.raises(TemplateUnsupported, match="no chat template"):
        renderer(make_tokenizer(""))
    with pytest.raises(TemplateUnsupported, match="no token that ends"):
        Renderer(TOKENIZER, stop_tokens=(), max_length=10)


def test_all_examples_at_fault_are_named_at_once() -> None:
    bad = [Example(line, (user("<|im_end|>"), assistant("Aye"))) for line in (3, 5)]
    with pytest.raises(DataInvalid) as caught:
        renderer().render_all([Example(1, (user("hi"), assistant("Aye"))), *bad])
    assert [problem.line for problem in caught.value.problems] == [3, 5]


def test_stop_tokens_are_the_generation_configs_and_the_tokenizers() -> None:
    assert stop_tokens(TOKENIZER, None) == {END}
    assert stop_tokens(TOKENIZER, SimpleNamespace(eos_token_id=0)) == {0, END}
    assert stop_tokens(TOKENIZER, SimpleNamespace(eos_token_id=[0, 1])) == {0, 1, END}
