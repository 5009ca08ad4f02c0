from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from adapters.dataset.held_out import MIN_HELD_OUT
from trainer.data.folding import fold
from trainer.data.format import Example, Message
from trainer.data.personal import PersonalDataDetector
from trainer.data.shingles import FEW, ShingleSets
from trainer.data.similar import SIMILAR, groups, normalise
from trainer.data.split import question, split

SENTENCE = "I ordered a brass lantern last week and the parcel has not come to my door yet, where is it number {}?"


def test_texts_that_differ_in_a_word_are_one_group_and_others_are_not() -> None:
    texts = [SENTENCE.format(1), "Do you sell rope?", SENTENCE.format(2), "do  you sell ROPE?", "Is the shop open?"]
    assert groups(texts) == [[0, 2], [1, 3], [4]]


def test_a_chain_of_similar_texts_is_one_group() -> None:
    words = [f"word{number}" for number in range(60)]
    chain = [" ".join(words[start : start + 50]) for start in range(0, 11, 2)]
    assert groups(chain) == [list(range(len(chain)))]


def test_every_index_stands_in_one_group() -> None:
    rng = random.Random(1)
    texts = [SENTENCE.format(rng.randrange(5)) if rng.random() < 0.5 else str(rng.random()) for _ in range(300)]
    found = groups(texts)
    assert sorted(index for group in found for index in group) == list(range(300))
    assert groups([]) == []


def test_width_and_case_make_no_difference() -> None:
    assert normalise("ＡＢＣ  d\n") == "abc d"


def with_one_instruction(many: int, letters: int) -> list[str]:
    """Questions that begin with the same long instruction and go on for so many letters of their own."""
    rng = random.Random(3)
    instruction = "".join(rng.choices("abcdefghijklmnop ", k=470))
    return [f"{instruction} {''.join(rng.choices('abcdefghij ', k=letters))}" for _ in range(many)]


def compared(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], int]:
    """The groups, and how many similarities were computed for them."""
    pairs, really = 0, ShingleSets.jaccard

    def counted(self: ShingleSets, index: int, others: Any) -> Any:
        nonlocal pairs
        pairs += len(others)
        return really(self, index, others)

    monkeypatch.setattr(ShingleSets, "jaccard", counted)
    return groups(texts), pairs


def test_similar_texts_of_one_group_are_not_compared_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found, pairs = compared(with_one_instruction(600, 20), monkeypatch)
    assert found == [list(range(600))]
    assert pairs <= 600 * FEW


def test_a_long_instruction_alone_makes_no_group_and_every_near_text_is_found_in_the_crowd() -> None:
    texts = with_one_instruction(400, 150)
    texts += [f"{text[:-3]}xyz" for text in texts[:100:10]]
    expected = [[at, 400 + at // 10] if at in range(0, 100, 10) else [at] for at in range(400)]
    assert groups(texts) == expected


@pytest.mark.parametrize("letters", [40, 90, 150])
def test_the_similarity_of_one_with_many_is_exact(letters: int) -> None:
    texts = [normalise(text) for text in [*with_one_instruction(150, letters), "", "abc", "Is the shop open?"]]
    sets = [{text[at : at + 4] for at in range(max(1, len(text) - 3))} for text in texts]
    found = ShingleSets(texts)
    for index in (0, 77, 150, 152):
        exact = [len(sets[index] & other) / len(sets[index] | other) for other in sets]
        assert found.jaccard(index, np.arange(len(texts))).tolist() == exact
        assert found.jaccard(index, np.arange(FEW)).tolist() == exact[:FEW]


@pytest.mark.slow
def test_no_near_pair_straddles_two_groups() -> None:
    """Against every pair: most of these are just below the threshold, and some at it."""
    texts = [fold(text) for text in with_one_instruction(250, 64)]
    sets = [{text[at : at + 4] for at in range(len(text) - 3)} for text in texts]
    group_of = {index: number for number, group in enumerate(groups(texts)) for index in group}
    near = [
        (one, other)
        for one in range(len(texts))
        for other in range(one)
        if len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= SIMILAR
    ]
    assert near
    assert all(group_of[one] == group_of[other] for one, other in near)


def example(line: int, text: str, answer: str = "a") -> Example:
    return Example(line, (Message("user", text, trained=False), Message("assistant", answer, trained=True)))


def test_similar_questions_never_straddle_the_border() -> None:
    rng = random.Random(2)
    topics = [" ".join(str(rng.randrange(10_000)) for _ in range(20)) for _ in range(40)]
    examples = [example(line, f"{topics[line % 40]} number {line % 7}") for line in range(200)]
    rng.shuffle(examples)
    parts = split(examples, seed=5, share=0.2)
    assert 0 < len(parts.held_out) <= 40
    assert sorted(parts.training + parts.held_out) == list(range(200))
    held = set(parts.held_out)
    for group in groups([question(one) for one in examples]):
        assert len({index in held for index in group}) == 1
    assert split(examples, seed=5, share=0.2) == parts
    assert split(examples, seed=6, share=0.2) != parts


def test_of_a_file_that_has_grown_nearly_the_same_is_held_out() -> None:
    """So that who trains on it again is judged by what the former version did not learn either."""
    rng = random.Random(7)
    texts = [" ".join(str(rng.randrange(10_000)) for _ in range(8)) for _ in range(330)]

    def held(chosen: list[str]) -> set[str]:
        examples = [example(line, text) for line, text in enumerate(chosen)]
        return {chosen[index] for index in split(examples).held_out}

    before = held(texts[:300])
    assert len(before) == 30
    grown = [*texts]
    rng.shuffle(grown)
    after = held(grown)
    assert len(after) == 33
    assert len(before & after) >= 27
    # what was learnt before and is held out now: hardly any, where by another draw nine of ten would be
    assert len(after & (set(texts[:300]) - before)) <= 4
    assert held([text.upper() + "  " for text in texts[:300]]) == {text.upper() + "  " for text in before}


def test_large_groups_are_not_held_out_before_small_ones() -> None:
    rng = random.Random(3)
    topics = [" ".join(str(rng.randrange(10_000)) for _ in range(20)) for _ in range(400)]
    asked = [topic for at, topic in enumerate(topics) for topic in [topic] * (8 if at < 100 else 1)]
    examples = [example(line, f"{text} {line % 9}") for line, text in enumerate(asked)]
    held = [asked[index] for index in split(examples, share=0.5).held_out]
    large = len({text for text in held if text in set(topics[:100])})
    assert 35 <= large <= 65  # of 100 groups of eight about half


def test_nothing_is_held_out_of_a_handful() -> None:
    few = [example(line, str(line) * 20) for line in range(2 * MIN_HELD_OUT - 1)]
    assert split(few, seed=0).held_out == ()
    assert len(split([*few, example(99, "one more")], seed=0).held_out) == MIN_HELD_OUT


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to bob@corp.io", {"email"}),
        ("write to bob@shop.example or a@example.com", set()),
        ("call +49 170 1234567", {"telephone number"}),
        ("call +1 555 010 0199, or +999 1234 5678", set()),  # of no numbering plan
        ("my card 4111 1111 1111 1111", {"card number"}),
        ("order 4111 1111 1111 1112", set()),
        ("to DE89 3704 0044 0532 0130 00", {"bank account"}),
        ("to DE89 3704 0044 0532 0130 00 BY FRIDAY 9", {"bank account"}),
        ("to DE88 3704 0044 0532 0130 00", set()),
        ("AKIAIOSFODNN7EXAMPLE", {"AWS Access Key"}),
        ("first\n-----BEGIN RSA PRIVATE KEY-----", {"Private Key"}),
        ("The password of the day is a fine word.", set()),
        ("I forgot my password: it is not working, is a new password required?", set()),
        ("the password is Tr0ub4dor&3", {"Password"}),
        ("call (415) 555-2671 or 020 7946 0958", {"telephone number"}),
        ("order 2024-12-1999, part 123-456-7890, ISBN 978-3-16-148410-0", set()),
        ("SSN 536-90-4399", {"identity number"}),
        ("SSN 078-05-1120", set()),  # of an advertisement, never given to anybody
        ("NHS number 943 476 5919", {"identity number"}),
        ("NHS number 943 476 5918", set()),
        ("my passport is AB1234567", {"identity number"}),
        ("bring your passport by 12 May 2027", set()),
        ("sk-" + "a1B2" * 12, {"API Key"}),
        ("hf_" + "a1B2" * 9, {"Hugging Face Token"}),
        ("Authorization: Bearer " + "a1B2" * 9, {"Bearer Token"}),
        ("authorization: bearer " + "a1B2" * 9, {"Bearer Token"}),
        ("sk-proj-" + "a1B2" * 12, {"API Key"}),
        ("sk-or-v1-" + "0a1b" * 16, {"API Key"}),
        ("export API_KEY=" + "a1B2" * 6, {"API Key"}),
        ("see /sk-this-is-our-longest-slug-of-2026 for it", set()),
        ("the Bearer of-this-very-long-certificate may enter", set()),
        ('{"user": "bo", "password": "hunter2!x"}', {"Password"}),
        ("pwd=hunter22", {"Password"}),
        ("Your password is incorrect!", set()),
        ("password: <your-password-1>", set()),
        ("password = ********1", set()),
        ("Telefon: 030 901820", {"telephone number"}),
        ("my mobile number is 0412 345 678", {"telephone number"}),
        ("phone case 0412345678901234", set()),
        ("order 030 901820", set()),
        ("my SSN is 536904399", {"identity number"}),
        ("social security number: 536 90 4399", {"identity number"}),
        ("part 536904399", set()),
        ("my passport number is 536904399", {"identity number"}),
        ("I sent my passport on 20260512", set()),
        ("my passport was in the parcel of order 12345678", set()),
        ("ISBN 9783161484100, 978-0-306-40615-7 and 0-306-40615-2", set()),
        ("ISBN 9780000000040", set()),  # its digits also pass Luhn's test
        ("at 1700000000004 ms", set()),  # these too
        ("tracking number 9400 1118 9922 3033 0054", set()),
        ("card 378282246310005 or 6011 1111 1111 1117", {"card number"}),
        ("Passport No.: 533380006", {"identity number"}),
        ("my passport no. 533380006", {"identity number"}),
        ("Sorry about the passport. 533380006 is our order number", set()),
        ("my password hunter2 is refused", {"Password"}),
        ("pass: hunter2", {"Password"}),
        ("pw: hunter2!", {"Password"}),
        ("Passwort: geheim12", {"Password"}),
        ("Mein Passwort ist geheim12", {"Password"}),
        ("the password policy, password OAuth2, password SHA256 or password Windows10", set()),
        ("password 12345678 and password reset", set()),
        ("Boarding pass: gate B12; a pass: valid for one day", set()),
        ("ring 415 555 2671 or 06 12 34 56 78", {"telephone number"}),
        ("call me: 415 555 2671", {"telephone number"}),
        ("at 06.12.34.56.78", {"telephone number"}),
        ("order number 415 555 2671, ref. 415 555 2671", set()),
        ("115 555 2671, 1 415 555 2671 9, 06 12 34 56 78 90, 01 02 2026", set()),
        ("from 2026-05-12 09:30 to 12.05.2026, 05/12/2026", set()),
        ("it costs 1,234,567.89 EUR or $1234567.89, 12 345 678 yen", set()),
        ("md5 9e107d9d372bb6826bd81d3542a419d6", set()),
        ("sha256 " + "9e107d9d372bb682" * 4, set()),
        ("id 123e4567-e89b-12d3-a456-426614174000", set()),
        ("order 4006381333931, invoice 2026-000123-4567", set()),
    ],
)
def test_personal_data_and_secrets(text: str, kinds: set[str]) -> None:
    assert PersonalDataDetector().find(text) == kinds


@pytest.mark.parametrize("piece", ["password:", "api_key=", "sk-", "bearer ", "passport ", "SSN ", "tel. "])
def test_a_text_of_nothing_but_beginnings_takes_no_longer_for_it(piece: str) -> None:
    detector, start = PersonalDataDetector(), time.process_time()
    assert detector.find(piece * 20_000) == set()
    assert time.process_time() - start < 4  # quadratic: 20 s and more
