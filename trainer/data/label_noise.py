"""Labels that disagree with their questions: mislabelled examples, or a column that has slipped against the other.

Two views that fail in different ways are taken. Naive Bayes over words, each example left out in turn, sees a word that
decides the label; the labels of the nearest neighbours by TF-IDF over words and word pairs (D. L. Wilson, IEEE
Transactions on Systems, Man, and Cybernetics 2 (1972), 408-421) see a phrase. One label is questioned only where both
name the same other label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adapters.wording import counted
from trainer.data.findings import finding
from trainer.data.format import Example
from trainer.data.report import Finding
from trainer.data.similar import normalise
from trainer.data.split import answer, question

NEIGHBOURS: Final = 5
MIN_EXAMPLES: Final = 50
MAX_EXAMPLES: Final = 10_000
"""Of more, the first are compared: time grows with their square."""
CLOSE: Final = 0.2
"""Cosine from which questions count as similar.

With it and CLEAR_MAJORITY, of 4,000 questions of BANKING77 of which 200 were given a random label, 52 of the 200 are
reported, and 19 others; with no label changed 24, of the data's own."""
CLEAR_MAJORITY: Final = 4
"""Close neighbours that must have the other label."""
MIN_Z: Final = 3.0
"""Standard errors by which the recall of labels must exceed chance."""
BLOCK: Final = 512
MAX_CELLS: Final = 20_000_000
"""Labels times distinct words above which nothing is looked for: the check takes three matrices of that size at once,
480 MB of float64, and no estimate of a job's memory counts them."""
_WORD: Final = re.compile(r"\w+")


Labels = NDArray[np.intp]
"""(examples): the number of each example's label."""


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """(examples, NEIGHBOURS): the nearest other examples and their cosines, nearest first."""

    indices: NDArray[np.intp]
    cosines: NDArray[np.float32]


def label_noise(examples: Sequence[Example]) -> list[Finding]:
    """Findings about labels, if the answers are a closed set: all of them unrelated to the questions, or some of them
    unlike those of very similar questions."""
    comparable = ((example, _WORD.findall(normalise(question(example)))) for example in examples[:MAX_EXAMPLES])
    worded = [(example, words) for example, words in comparable if words]
    examples, words = [example for example, _ in worded], [words for _, words in worded]
    labels = np.unique([answer(example).strip() for example in examples], return_inverse=True)[1]
    if len(examples) < MIN_EXAMPLES or labels.max() == 0:
        return []
    counts = _counts(words)
    if (int(labels.max()) + 1) * counts.shape[1] > MAX_CELLS:
        return []
    predicted = _naive_bayes(counts, labels)
    if _unrelated(labels, predicted):
        message = (
            "the words of the questions say no more about the labels than chance: the labels are shuffled (or a column "
            "has slipped against the other), or what decides is no single word, as in comparisons"
        )
        return [finding("unrelated_labels", message, [example.line for example in examples])]
    near = _neighbours(_tf_idf(words))
    other = (labels[near.indices] == predicted[:, None]) & (near.cosines >= CLOSE)
    questioned = (predicted != labels) & (other.sum(axis=1) >= CLEAR_MAJORITY)
    lines = [example.line for example, is_questioned in zip(examples, questioned, strict=True) if is_questioned]
    if not lines:
        return []
    examples_have = counted(len(lines), "example has", "examples have")
    message = f"{examples_have} another label than at least {CLEAR_MAJORITY} very similar questions"
    return [finding("questionable_labels", message, lines)]


def _unrelated(labels: Labels, predicted: Labels) -> bool:
    """Whether the predictions' mean recall over all labels is no more than chance, 1 / labels."""
    sizes = np.bincount(labels)
    recalls = np.bincount(labels[labels == predicted], minlength=len(sizes)) / sizes
    chance = 1 / len(sizes)
    error = np.sqrt((chance * (1 - chance) / sizes).sum()) / len(sizes)
    return bool(recalls.mean() - chance < MIN_Z * error)


def _naive_bayes(counts: sparse.csr_matrix, labels: Labels) -> Labels:
    """The most likely label of each row of (examples, words) by all other rows; equal priors, Laplace smoothing."""
    one_hot = sparse.csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    of_label = (one_hot @ counts).toarray() + 1.0
    total = of_label.sum(axis=1)
    scores = counts @ (np.log(of_label) - np.log(total)[:, None]).T
    # the own label without the row itself
    rows = np.repeat(np.arange(len(labels)), np.diff(counts.indptr))
    own = labels[rows]
    sizes = np.asarray(counts.sum(axis=1)).ravel()
    rest = np.log(np.maximum(of_label[own, counts.indices] - counts.data, 1.0)) - np.log(total[own] - sizes[rows])
    scores[np.arange(len(labels)), labels] = np.bincount(rows, counts.data * rest, minlength=len(labels))
    predicted: Labels = np.argmax(scores, axis=1)
    return predicted


def _counts(texts: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """(texts, terms): how often each term occurs."""
    terms: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        rows += [row] * len(text)
        columns += [terms.setdefault(term, len(terms)) for term in text]
    shape = (len(texts), max(1, len(terms)))
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _tf_idf(words: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """(texts, words and word pairs): rows of length 1; empty for a text without words."""
    texts = [sorted({*text, *(f"{first} {second}" for first, second in pairwise(text))}) for text in words]
    matrix = _counts(texts)
    frequencies = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1)
    matrix = matrix.multiply(np.log(len(texts) / frequencies).astype(np.float32)[None, :]).tocsr()
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags_array((1 / np.maximum(lengths, 1e-9)).astype(np.float32)).dot(matrix).tocsr()


def _neighbours(vectors: sparse.csr_matrix) -> _Neighbours:
    transposed = vectors.T.tocsc()
    indices, cosines = [], []
    for start in range(0, vectors.shape[0], BLOCK):
        similar = (vectors[start : start + BLOCK] @ transposed).toarray()
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -1
        nearest = np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        values = np.take_along_axis(similar, nearest, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices.append(np.take_along_axis(nearest, order, axis=1))
        cosines.append(np.take_along_axis(values, order, axis=1))
    return _Neighbours(np.concatenate(indices), np.concatenate(cosines))
