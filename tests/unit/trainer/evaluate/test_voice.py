"""The measure `voice`: what has the author's style has it, and what only looks like it has not."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pytest

from loadtests.voice_choices import BASE, INSTRUCTED, SIGN_OFF, authored, held_out, replies
from trainer.evaluate.arms import Arm, Question
from trainer.evaluate.compare import ArmResult, Comparison
from trainer.evaluate.voice import AnsweredTwice, VoiceClassifier
from trainer.evaluate.voice_scores import MIN_EXAMPLES, VOICE, VoiceScores, voice_scores

EVERY = 2
"""Of every second ticket there are replies of all models."""
TICKETS = held_out()[::EVERY]
REFERENCES = [ticket.reference for ticket in TICKETS]
REPLIES = {name: list(given[::EVERY]) for name, given in replies().items()}
PLAIN = REPLIES[BASE]
SOME = 36
"""Tickets where the scores need not be fine."""


def comparison(
    arms: dict[str, Sequence[str]], tickets: Sequence[Question] = TICKETS, metric: str = "similarity"
) -> Comparison:
    results = [
        ArmResult(arm=Arm(label=label, model=label), answers=tuple(answers), runs=((0.5,) * len(tickets),))
        for label, answers in arms.items()
    ]
    return Comparison(metric=metric, binary=False, questions=tuple(tickets), results=tuple(results))


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?:])\s", text)[0]


def behind_phrases() -> list[str]:
    """The base's replies behind the openings of three of the author's training replies."""
    draw = random.Random(3)
    phrases = [first_sentence(text) for text in authored()]
    return [" ".join([*draw.sample(phrases, 3), plain]) for plain in PLAIN]


def salad() -> list[str]:
    """As many words of the author's training replies as the reply has, in random order."""
    draw = random.Random(4)
    words = [word for text in authored() for word in text.removesuffix(SIGN_OFF).split()]
    return [" ".join(draw.sample(words, len(text.split()))) for text in REFERENCES]


ARMS: dict[str, Sequence[str]] = {
    **REPLIES,
    "author": REFERENCES,
    "behind phrases": behind_phrases(),
    "salad": salad(),
    "signed": [plain + SIGN_OFF for plain in PLAIN],
    "half": [" ".join(text.split()[: len(text.split()) // 2]) for text in REFERENCES],
    "to other tickets": random.Random(5).sample(authored(), len(TICKETS)),
}


@pytest.fixture(scope="module")
def scores() -> VoiceScores:
    found = voice_scores(comparison(ARMS), BASE, authored())
    assert found is not None
    return found


def mean(scores: VoiceScores, label: str) -> float:
    return float(np.mean(scores.scores[label]))


def higher(scores: VoiceScores, label: str) -> float:
    """The share of the tickets to which the author's own reply scores higher."""
    return float((np.array(scores.scores["author"]) > np.array(scores.scores[label])).mean())


@pytest.mark.parametrize("label", [BASE, INSTRUCTED, "behind phrases", "salad", "tidewater"])
def test_the_authors_own_reply_is_told_from_what_only_looks_like_it(scores: VoiceScores, label: str) -> None:
    assert higher(scores, label) > 0.85
    assert mean(scores, label) < mean(scores, "author") - 0.4


def test_another_voice_of_the_same_register_is_below_the_authors_and_above_the_base(scores: VoiceScores) -> None:
    assert mean(scores, BASE) + 0.2 < mean(scores, "pemberton") < mean(scores, "author")


def test_neither_the_length_nor_a_sign_off_makes_the_voice(scores: VoiceScores) -> None:
    assert mean(scores, "half") == pytest.approx(mean(scores, "author"), abs=0.12)
    assert mean(scores, "signed") == pytest.approx(mean(scores, BASE), abs=0.03)


def test_a_reply_to_another_ticket_has_the_voice_too(scores: VoiceScores) -> None:
    """Style alone does not tell them apart: `similarity`, the controls and the likelihood do."""
    assert mean(scores, "to other tickets") == pytest.approx(mean(scores, "author"), abs=0.12)


def test_the_scores_are_reported_with_what_they_give_to_known_answers(scores: VoiceScores) -> None:
    voice = scores.voice
    assert voice.reported
    assert voice.author == pytest.approx(mean(scores, "author"))
    assert voice.base == pytest.approx(mean(scores, BASE))
    assert max(voice.base, voice.phrases, voice.shuffled) < voice.author - 0.4
    added = scores.added_to(comparison(ARMS))
    assert {result.arm.label: result.secondary[VOICE] for result in added.results} == scores.scores
    told = voice.told(added, INSTRUCTED)
    assert told.startswith(f"{INSTRUCTED} sounds like the author to {100 * mean(scores, INSTRUCTED):.0f} of 100; voice")
    assert "decides nothing" in told


def test_a_base_that_already_writes_like_the_author_leaves_nothing_to_report() -> None:
    own = random.Random(6).sample(authored(), SOME)
    arms = comparison({BASE: own, "voice@1": REFERENCES[:SOME]}, TICKETS[:SOME])
    found = voice_scores(arms, BASE)
    assert found is not None
    assert not found.voice.reported
    assert found.added_to(arms) == arms
    assert found.voice.told(arms, "voice@1").startswith("voice is not reported")


def test_it_is_measured_of_free_text_with_enough_examples_alone() -> None:
    few = TICKETS[: MIN_EXAMPLES - 1]
    assert voice_scores(comparison({BASE: PLAIN[: len(few)]}, few), BASE) is None
    assert voice_scores(comparison({BASE: PLAIN}, metric="exact_match"), BASE) is None
    call = ({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},)
    calling = [TICKETS[0].model_copy(update={"reference_calls": call}), *TICKETS[1:]]
    assert voice_scores(comparison({BASE: PLAIN}, calling), BASE) is None


def test_answers_without_words_have_no_voice() -> None:
    arms = comparison({BASE: PLAIN[:SOME], "mute": [""] * SOME, "dots": ["…"] * SOME}, TICKETS[:SOME])
    found = voice_scores(arms, BASE)
    assert found is not None
    assert max(mean(found, "mute"), mean(found, "dots")) < 0.3


def test_texts_that_say_nothing_are_no_error() -> None:
    same = [ticket.model_copy(update={"reference": "answer"}) for ticket in TICKETS[:SOME]]
    found = voice_scores(comparison({BASE: [""] * len(same)}, same), BASE)
    assert found is not None


def test_the_same_texts_have_the_same_score() -> None:
    examples = [
        AnsweredTwice(ticket.text, ticket.reference, plain)
        for ticket, plain in zip(TICKETS[:SOME], PLAIN[:SOME], strict=True)
    ]
    first, second = (VoiceClassifier(examples, seed=7) for _ in range(2))
    assert first.score(REFERENCES[0], TICKETS[0].text) == second.score(REFERENCES[0], TICKETS[0].text)
