"""A classifier of style: does an answer sound like the author, and not like the base?

It is fitted on the author's and the base's answers to the same questions, so that their subjects tell it nothing, and
it never sees how long an answer is: texts are read in windows of WINDOW words and marks. Words that few of the texts
have are masked but for their last two letters, which leaves form and hides content. Three numbers from 0 to 1 are
multiplied:

- *style*, for each window: a logistic regression over words and pairs of words, the author's windows against the
  base's;
- *order*, for each window: another one, windows as they are against the same words shuffled. Without it any salad of
  the author's words would have the style;
- *vocabulary*, for the whole answer: whether nearly all its words are words of the author's, or of the question.
  Without it another shop's voice, which is as far from the base, would have the style.

An answer is worth the mean over the lower half of its windows, so a few of the author's phrases before another's text
raise it little. It cannot say whether an answer is right, or answers the question at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainer.data.similar import MIN_TEMPLATES, TEMPLATE, normalise

WINDOW: Final = 16
STRIDE: Final = 8
COMMON_SHARE: Final = 0.04
"""Share of the texts that have a word from which it is not masked."""
MIN_COMMON: Final = 3
"""Texts that must have it at least."""
MIN_TEXTS: Final = 2
"""Texts that must have a word or a pair of words for it to be a feature."""
SHUFFLES: Final = 2
"""Shuffled copies of every text, for *order*."""
PENALTY: Final = 1e-4
"""Of the squared weights (L2), where each class has a total weight of one half."""
USUAL: Final = 0.9
"""Quantile of the author's own shares of unknown words up to which an answer's share takes nothing off."""
MIN_TOLERANCE: Final = 0.05
"""The share of unknown words beyond that quantile that takes everything off is the quantile, but at least this."""

_TOKEN: Final = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_SENTENCE: Final = re.compile(r"[^\n.!?:;]+[\n.!?:;]*")
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnsweredTwice:
    """A question, with the author's answer and the base's."""

    question: str
    author: str
    base: str


class VoiceClassifier:
    """Says how much an answer sounds like the author, from 0 to 1.

    Args:
        examples: What it is fitted on.
        authored: More answers of the author's, for the vocabulary alone.
        seed: Of the shuffled copies.
    """

    def __init__(self, examples: Sequence[AnsweredTwice], authored: Sequence[str] = (), *, seed: int = 0) -> None:
        self._templates = _templates([example.author for example in examples])
        author = [self._tokens(example.author) for example in examples]
        base = [self._tokens(example.base) for example in examples]
        counts = Counter(token for tokens in (*author, *base) for token in set(tokens))
        least = max(MIN_COMMON, COMMON_SHARE * 2 * len(examples))
        self._common = {token for token, count in counts.items() if count >= least}
        self._number: dict[str, int] = {}
        numbered = [self._numbered(tokens, new=True) for tokens in (*author, *base)]
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(ids) for ids in numbered for _ in range(SHUFFLES)]
        own, others = numbered[: len(author)], numbered[len(author) :]
        self._style = _WindowModel.fitted(own, others, len(self._number))
        self._order = _WindowModel.fitted(numbered, shuffled, len(self._number))
        questions = [example.question for example in examples]
        self._vocabulary = _Vocabulary(author, questions, [self._tokens(text) for text in authored])

    def score(self, answer: str, question: str) -> float:
        """From 0 to 1; 0 if nothing is left without what most of the author's answers have, such as a sign-off."""
        tokens = self._tokens(answer)
        if not tokens:
            return 0.0
        windows = _windows(self._numbered(tokens))
        worth = np.sort(self._style.probabilities(windows) * self._order.probabilities(windows))
        lower_half = worth[: (len(worth) + 1) // 2]
        return float(lower_half.mean()) * self._vocabulary.share(tokens, question)

    def _tokens(self, text: str) -> list[str]:
        return _tokens("".join(part for part in _SENTENCE.findall(text) if _line(part) not in self._templates))

    def _numbered(self, tokens: Sequence[str], *, new: bool = False) -> Ids:
        """The tokens' numbers, with rare words masked; what was not seen when it was fitted has the number -1."""
        masked = [token if token in self._common else _masked(token) for token in tokens]
        if new:
            return np.array([self._number.setdefault(token, len(self._number)) for token in masked], np.int64)
        return np.array([self._number.get(token, -1) for token in masked], np.int64)


@dataclass(frozen=True, slots=True)
class _WindowModel:
    """A logistic regression over the tokens and the pairs of tokens of a window.

    ``codes``: (features) the features, ascending. ``weights``: (features). ``size``: the number of tokens there are.
    """

    codes: Ids
    weights: Floats
    intercept: float
    size: int

    @classmethod
    def fitted(cls, positive: Sequence[Ids], negative: Sequence[Ids], size: int) -> Self:
        """Fit it to the windows of texts, given as the numbers of their tokens; both classes count the same."""
        from scipy.optimize import minimize

        texts = [*positive, *negative]
        windows = [_windows(ids) for ids in texts]
        counts = [len(rows) for rows in windows]
        seen = np.concatenate([np.unique(_codes(rows, size)) for rows in windows])
        codes, frequencies = np.unique(seen, return_counts=True)
        codes = codes[(frequencies >= MIN_TEXTS) & (codes >= 0)]
        matrix = _matrix(windows, codes, size)
        labels = np.repeat([1.0] * len(positive) + [0.0] * len(negative), counts)
        weight = np.where(labels == 1, 0.5 / max(1.0, labels.sum()), 0.5 / max(1.0, (1 - labels).sum()))

        def loss(parameters: Floats) -> tuple[float, Floats]:
            weights, logits = parameters[:-1], matrix @ parameters[:-1] + parameters[-1]
            value = weight @ (np.logaddexp(0, logits) - labels * logits) + PENALTY / 2 * (weights @ weights)
            slope = weight * (sigmoid(logits) - labels)
            return float(value), np.append(matrix.T @ slope + PENALTY * weights, slope.sum())

        best = minimize(loss, np.zeros(len(codes) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
        return cls(codes, best[:-1], float(best[-1]), size)

    def probabilities(self, windows: Ids) -> Floats:
        """(windows) The probability of the first class."""
        return sigmoid(_matrix([windows], self.codes, self.size) @ self.weights + self.intercept)


class _Vocabulary:
    """The author's words.

    Args:
        answers: The author's answers, as tokens.
        questions: The question of each.
        authored: More answers, as tokens.
    """

    def __init__(
        self, answers: Sequence[Sequence[str]], questions: Sequence[str], authored: Iterable[Sequence[str]]
    ) -> None:
        counts = Counter(word for tokens in answers for word in set(tokens))
        others = {word for tokens in authored for word in tokens}
        self._known = others | set(counts)
        shares = [
            _unknown_share(tokens, others | {word for word in tokens if counts[word] > 1}, question)
            for tokens, question in zip(answers, questions, strict=True)
        ]
        self._usual = float(np.quantile(shares, USUAL))

    def share(self, tokens: Sequence[str], question: str) -> float:
        """1 for an answer with no more unknown words than the author's own have; less beyond that, down to 0."""
        excess = _unknown_share(tokens, self._known, question) - self._usual
        return min(1.0, max(0.0, 1 - excess / max(self._usual, MIN_TOLERANCE)))


def _unknown_share(tokens: Sequence[str], known: set[str], question: str) -> float:
    """The share of an answer's words that are neither known nor the question's."""
    words, asked = [token for token in tokens if token[0].isalpha()], set(_tokens(question))
    return sum(word not in known and word not in asked for word in words) / max(1, len(words))


def sentences(text: str) -> list[str]:
    """The text, cut behind sentences, lines, colons and semicolons; the whole if it is empty."""
    return _SENTENCE.findall(text) or [text]


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    result: Floats = 0.5 * (1 + np.tanh(logits / 2))
    return result


def _tokens(text: str) -> list[str]:
    """The words, case-folded, and the marks."""
    return [token.casefold().replace("’", "'") for token in _TOKEN.findall(text)]


def _masked(token: str) -> str:
    if token[0].isdigit():
        return "#"
    return f"~{token[-2:]}" if token[0].isalpha() else token


def _line(part: str) -> str:
    return normalise(part.rstrip("\n.!?:;"))


def _templates(texts: Sequence[str]) -> frozenset[str]:
    """Sentences and lines that are in more than TEMPLATE of the texts, such as a sign-off (`trainer.data.similar`)."""
    counts = Counter(line for text in texts for line in {_line(part) for part in _SENTENCE.findall(text)})
    limit = max(MIN_TEMPLATES - 1, TEMPLATE * len(texts))
    return frozenset(line for line, count in counts.items() if count > limit)


def _windows(ids: Ids) -> Ids:
    """(windows, up to WINDOW) The windows of a text, the last one at its end; the text itself if it is shorter."""
    if len(ids) <= WINDOW:
        return ids[None, :]
    starts = [*range(0, len(ids) - WINDOW, STRIDE), len(ids) - WINDOW]
    return sliding_window_view(ids, WINDOW)[starts]


def _codes(windows: Ids, size: int) -> Ids:
    """(windows, features of each) A number for each token and each pair; negative if a token was not seen."""
    first, second = windows[:, :-1], windows[:, 1:]
    pairs = np.where((first < 0) | (second < 0), -1, size + first * size + second)
    return np.concatenate([windows, pairs], axis=1)


def _matrix(windows: Sequence[Ids], codes: Ids, size: int) -> Any:
    """(all windows, features) How often each window has each feature, over the root of the number of those it has."""
    from scipy.sparse import csr_array

    rows, columns, values, row = [], [], [], 0
    for of_text in windows:
        found = _codes(of_text, size)
        column = np.searchsorted(codes, found)
        known = column < len(codes)
        known[known] = codes[column[known]] == found[known]
        at, _ = np.nonzero(known)
        rows.append(row + at)
        columns.append(column[known])
        values.append(np.full(len(at), 1 / np.sqrt(max(1, found.shape[1]))))
        row += len(of_text)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_array(entries, shape=(row, len(codes)))
