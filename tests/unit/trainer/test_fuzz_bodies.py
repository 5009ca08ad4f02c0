"""Bodies that a client may send, wrong in one place each: an error names the client's own fields, and nothing of how
we are built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.protocol.runs import CreateEvaluation
from trainer.errors import RequestError
from trainer.evaluate.evaluations.schemas import read_request
from trainer.finetune.schemas import read_body
from trainer.validation import validated

FORBIDDEN: Final = re.compile(
    r"pydantic|constrained|function-|\[key\]|<class|tuple|frozenset|NoneType|is-instance|\b(dict|list|str|int|bool|float)\b"
    r"|\b(Field|Model|Arm|Prompt|Evaluation|Create|Metric)[A-Z]\w+|Value error",
)
WRONG: Final = (
    None,
    True,
    0,
    -1,
    1e999,
    10**400,
    "",
    "x" * 101_000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a" * 100: {"b": 1}},
)
ARM: Final = {
    "label": "a",
    "model": "m",
    "endpoint": "e",
    "prompt": {"system": "s", "answers": ["yes"]},
    "grounding": {"stores": ["s"]},
}
EVALUATION: Final = {
    "arms": [ARM, ARM | {"label": "b"}],
    "candidate": "a",
    "bases": ["b"],
    "held_out": "f",
    "metric": {"name": "regex", "pattern": "a"},
    "suites": ["general"],
    "promote": "never",
    "judge": "j",
    "max_tokens": 8,
    "repeats": 2,
    "metadata": {"team": "sea"},
    "kind": "evaluation",
}
HYPERPARAMETERS: Final = {
    "n_epochs": 1,
    "batch_size": 1,
    "learning_rate": 0.1,
    "rank": 4,
    "target_modules": ["q_proj"],
    "metric": {"name": "regex", "pattern": "a"},
    "suites": ["general"],
    "judge": "j",
    "promote": "auto",
    "strict": True,
}
JOB: Final = {
    "model": "m",
    "training_file": "f",
    "validation_file": "g",
    "suffix": "s",
    "seed": 1,
    "metadata": {"team": "sea"},
    "hyperparameters": HYPERPARAMETERS,
    "method": {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    "integrations": [],
}
FILE: Final = {"id": "f", "filename": "f.jsonl", "bytes": 1, "sha256": "0"}
CONTEXT: Final = {"held_out": FILE, "models": {"a": "m"}, "candidate": "m", "grounding": {}, "training_files": [FILE]}
READERS: Final[dict[str, tuple[Any, Callable[[Any], object]]]] = {
    "evaluation": (EVALUATION, read_request),
    "job": (JOB, read_body),
    "from the gateway": ({"request": {}, "context": CONTEXT}, lambda body: validated(CreateEvaluation, body)),
}


def wrong(value: Any) -> Iterator[Any]:
    """The value with one place in it replaced, taken out or added."""
    yield from WRONG
    if isinstance(value, dict):
        yield value | {"surplus": 1}
        for name, inner in value.items():
            yield {other: kept for other, kept in value.items() if other != name}
            yield from (value | {name: changed} for changed in wrong(inner))
    if isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], changed, *value[at + 1 :]] for changed in wrong(inner))


def names(value: Any) -> set[str]:
    """All names in a value, as far as an error may show them."""
    if isinstance(value, dict):
        return {str(name)[:64] for name in value}.union(*(names(inner) for inner in value.values()))
    if isinstance(value, list):
        return {str(at) for at in range(len(value))}.union(*(names(inner) for inner in value))
    return set()


def check(reader: str, body: Any) -> bool:
    """Whether the body was refused; its error names what stands in the body, or is missing in it."""
    sound, read = READERS[reader]
    error = refusal(read, body)
    if error is None:
        return False
    leak = FORBIDDEN.search(f"{error.message} {error.param}")
    assert leak is None, (leak, error.message, error.param)
    known = names(body) | names(sound) | names(FILE) | {"context", "request"}
    assert set((error.param or "").split(".")) - {""} <= known, (error.param, error.message)
    return True


def refusal(read: Callable[[Any], object], body: Any) -> RequestError | None:
    try:
        read(body)
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize("reader", READERS)
def test_wherever_a_body_is_wrong_its_error_names_the_clients_own_fields(reader: str) -> None:
    sound = READERS[reader][0]
    refused = [check(reader, body) for body in wrong(sound)]
    assert sum(refused) > 50


VALUES: Final = st.recursive(
    st.sampled_from(WRONG) | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*EVALUATION, *ARM, "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from([*READERS]), st.data())
def test_bodies_of_anything(reader: str, data: st.DataObject) -> None:
    sound = READERS[reader][0]
    check(reader, data.draw(VALUES | st.dictionaries(st.sampled_from([*sound]), VALUES).map(lambda more: sound | more)))


@pytest.mark.parametrize("metric", ["", 7, [], None])
def test_a_metric_is_named_by_its_field(metric: Any) -> None:
    error = refusal(read_request, {"model": "m", "held_out": "f", "metric": metric})
    assert error is not None
    assert error.param == "metric"
