"""Cutting: on structure, within the size, nothing lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.grounding.provider import MAX_PASSAGE_CHARS
from service.knowledge.documents import chunks
from service.knowledge.documents.blocks import Block, DocumentError
from service.knowledge.documents.chunks import MAX_PATH, STRETCH, split
from service.knowledge.embedder.model import directory_of, word_tokens
from service.knowledge.text import PassageText


def tokens(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def passages(*blocks: Block, size: int = 8, overlap: int = 0) -> list[PassageText]:
    return list(split(blocks, tokens, size=size, overlap=overlap))


def ended(found: Iterator[PassageText], most: int) -> list[PassageText]:
    """All of them; fails where there are more, perhaps without end."""
    taken = list(islice(found, most + 1))
    assert len(taken) <= most
    return taken


def heading(text: str, level: int) -> Block:
    return Block(text, "heading", level)


def test_a_passage_knows_the_headings_above_it_and_crosses_none() -> None:
    blocks = [heading("Returns", 1), Block("In 45 days."), heading("Boots", 2), Block("Unworn.")]
    found = passages(*blocks, heading("Shipping", 1), Block("Daily."))
    assert [(one.heading, one.text) for one in found] == [
        ("Returns", "In 45 days."),
        ("Returns › Boots", "Unworn."),
        ("Shipping", "Daily."),
    ]
    assert [one.number for one in found] == [0, 1, 2]


def test_a_heading_with_nothing_below_it_is_text_itself() -> None:
    found = passages(heading("Open on Sundays", 1), heading("Closed", 1), heading("Always", 2))
    assert [(one.heading, one.text) for one in found] == [("", "Open on Sundays"), ("Closed", "Always")]


def test_sentences_stay_whole_and_the_last_ones_are_repeated() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten."
    found = passages(Block(text), size=8, overlap=4)
    assert [one.text for one in found] == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten.",
    ]
    assert [one.text[: one.repeats].strip() for one in found] == ["", "Four five six.", "Seven eight nine."]


def test_paragraphs_are_better_ends_than_sentences() -> None:
    found = passages(Block("One two three four."), Block("Five. Six seven eight nine ten."), size=8)
    assert found[0].text == "One two three four."


def test_a_word_is_cut_only_where_there_is_no_space() -> None:
    found = passages(Block("alpha beta gamma delta epsilon"), size=3)
    assert [one.text for one in found] == ["alpha beta gamma", "delta epsilon"]


def test_a_row_is_a_passage_of_its_own_with_its_attributes() -> None:
    found = passages(Block("a: 1", "row", 0, {"page": 1}), Block("a: 2", "row"))
    assert [(one.text, one.attributes) for one in found] == [("a: 1", {"page": 1}), ("a: 2", None)]


def test_a_path_is_bounded_and_its_end_is_kept() -> None:
    deep = [heading(f"{level} " + "x" * 80, level) for level in range(1, 7)]
    (one,) = passages(*deep, Block("text"))
    assert len(one.heading) <= MAX_PATH
    assert one.heading.rsplit(" › ", 1)[1].startswith("6 ")


def test_a_section_without_end_is_tokenized_in_stretches() -> None:
    longest = 0

    def counting(text: str) -> list[tuple[int, int]]:
        nonlocal longest
        longest = max(longest, len(text))
        return tokens(text)

    found = list(split([Block("word " * 50_000)], counting, size=200, overlap=20))
    assert longest <= STRETCH
    assert sum(len(one.text[one.repeats :].split()) for one in found) == 50_000


PIECES = st.sampled_from(["word", "a", ". ", "\n", "\n\n", "!", " ", "  ", "x. ", "日本。", "\t"])


@given(st.lists(PIECES, min_size=1, max_size=200), st.integers(2, 20), st.data())
@settings(max_examples=150)
def test_nothing_is_lost_nothing_is_too_long_and_it_ends(pieces: list[str], size: int, data: st.DataObject) -> None:
    text = "".join(pieces).strip()
    if not text:
        return
    found = passages(Block(text), size=size, overlap=data.draw(st.integers(0, size // 2)))
    assert "".join("".join(one.text[one.repeats :].split()) for one in found) == "".join(text.split())
    assert all(one.text and len(tokens(one.text)) <= size for one in found)
    assert all(after.text.startswith(after.text[: after.repeats]) for after in found)


@given(st.lists(st.tuples(PIECES, st.integers(1, 6)), min_size=1, max_size=120), st.integers(2, 12), st.data())
@settings(max_examples=300)
def test_several_tokens_of_one_character_end_too(pieces: list[tuple[str, int]], size: int, data: st.DataObject) -> None:
    text = "".join(piece for piece, _ in pieces)
    many = [times for piece, times in pieces for _ in piece]

    def decomposed(whole: str) -> list[tuple[int, int]]:
        shift = text.index(whole)
        return [(at, at + 1) for at, sign in enumerate(whole) for _ in range(many[at + shift]) if not sign.isspace()]

    if not text.strip():
        return
    overlap = data.draw(st.integers(0, size - 1))
    found = ended(split([Block(text.strip())], decomposed, size=size, overlap=overlap), len(text))
    assert "".join("".join(one.text[one.repeats :].split()) for one in found) == "".join(text.split())


def test_korean_ends_with_the_models_own_tokens() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(directory_of("")) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def real(text: str) -> list[tuple[int, int]]:
        return list(tokenizer.encode(text, add_special_tokens=False).offsets)

    text = "환불은구매후사십오일이내에가능합니다.\n" * 40
    assert len({start for start, _ in real(text)}) < len(real(text)), "several tokens start at one character"
    for overlap in (0, 1, 20, 40):
        found = ended(split([Block(text.strip())], real, size=80, overlap=overlap), len(text))
        assert "".join("".join(one.text[one.repeats :].split()) for one in found) == "".join(text.split())
        assert all(len(real(one.text)) <= 80 for one in found)


def test_a_character_of_more_tokens_than_a_passage_is_one_passage() -> None:
    def nine_each(text: str) -> list[tuple[int, int]]:
        return [(at, at + 1) for at in range(len(text)) for _ in range(9)]

    found = ended(split([Block("각각")], nine_each, size=4, overlap=2), 2)
    assert [one.text for one in found] == ["각", "각"]


@pytest.mark.parametrize(
    "text", ["0123456789abcdef" * 2_500, "Epäjärjestelmällisyydellä " * 4_000, "退货须在四十五天内寄回，" * 4_000]
)
def test_no_passage_is_longer_than_its_readers_take(text: str) -> None:
    path = [heading("x" * 200, 1), heading("y" * 99, 2)]

    def whole(given: str) -> list[tuple[int, int]]:
        return [(0, len(given))]

    for counted in (whole, word_tokens):
        found = list(split([*path, Block(text.strip())], counted, size=4096, overlap=0))
        assert max(len(one.whole) for one in found) <= MAX_PASSAGE_CHARS
        assert "".join(one.text for one in found).replace(" ", "") == text.replace(" ", "")


def test_a_token_without_end_is_cut_like_many() -> None:
    found = passages(Block("7" * 2_400), size=10)
    assert [len(one.text) for one in found] == [240] * 10


def test_letters_of_scripts_without_spaces_count_one_by_one() -> None:
    assert len(word_tokens("退货须在四十五天内")) == 9
    assert len(word_tokens("ご返品は\u300045日")) == 6
    assert len(word_tokens("hello wide world, 45")) == 5


def test_passages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_PASSAGES", 3)
    assert len(passages(*[Block("a", "row")] * 3)) == 3
    with pytest.raises(DocumentError, match="more than 3 passages"):
        passages(*[Block("a", "row")] * 4)
