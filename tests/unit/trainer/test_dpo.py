"""DPO: the loss against its formula, the reference, and a training that learns to prefer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.conftest import make_tokenizer
from tests.unit.trainer.test_train import lora
from trainer.data.format import parse_chat
from trainer.data.formats import read_dataset
from trainer.data.prepare import DataRules, Source, inspect
from trainer.data.render import Renderer, TokenSequence
from trainer.errors import DataInvalid
from trainer.evaluate.arms import questions
from trainer.tune.checkpoint import Checkpoints
from trainer.tune.objectives import PairPreference, reference_logprobs
from trainer.tune.progress import TrainingProgress
from trainer.tune.recipe import Recipe
from trainer.tune.train import train

RECIPE = Recipe(
    objective="dpo", rank=4, alpha=8, learning_rate=1e-2, epochs=6, batch_size=3, max_length=256, seed=5, beta=0.5
)


def pair(number: int) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"Ship {number * number} of {chr(97 + number) * 9}?"}]},
        "preferred_output": [{"role": "assistant", "content": f"Aye, she sails at {number}."}],
        "non_preferred_output": [{"role": "assistant", "content": f"No idea, ask again in {number} days, sir."}],
    }


def content(number: int) -> bytes:
    return b"\n".join(json.dumps(pair(at)).encode() for at in range(number))


def renderer() -> Renderer:
    tokenizer = make_tokenizer()
    return Renderer(tokenizer, stop_tokens={tokenizer.convert_tokens_to_ids("<|im_end|>")}, max_length=256)


@pytest.fixture(scope="module")
def pairs() -> list[TokenSequence]:
    """Six rendered pairs."""
    return renderer().render_all(read_dataset("f", content(6))[1].examples)


def logprob(model: Any, row: TokenSequence) -> torch.Tensor:
    """The plain computation: all logits of one row."""
    logits = model(input_ids=torch.tensor([row.tokens])).logits[0, :-1].float().log_softmax(-1)
    chosen = logits.gather(1, torch.tensor(row.tokens[1:]).unsqueeze(1))[:, 0]
    return chosen[torch.tensor(row.trained[1:])].sum()


def gradients(model: Any) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(
    base_model: Any, pairs: list[TokenSequence], checkpointing: bool
) -> None:
    recipe = RECIPE.model_copy(update={"gradient_checkpointing": checkpointing})
    model = lora(base_model, recipe)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    known = [replace(row, reference=(-20.0 - at, -30.0 + at)) for at, row in enumerate(pairs)]
    objective = PairPreference(model, recipe, training=True)
    total = 0.0
    for part in objective.micro_batches(known, max_tokens=300):
        assert all(row.rejected is not None for row in part)
        loss, _ = objective.loss(part, count=len(known))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    actual = gradients(model)

    expected = torch.zeros(())
    for row in known:
        assert row.reference is not None
        assert row.rejected is not None
        gain = (logprob(model, row) - row.reference[0]) - (logprob(model, row.rejected) - row.reference[1])
        expected = expected - torch.nn.functional.logsigmoid(recipe.beta * gain) / len(known)
    expected.backward()  # type: ignore[no-untyped-call]
    assert total == pytest.approx(expected.item(), rel=1e-4)
    for own, plain in zip(actual, gradients(model), strict=True):
        assert torch.allclose(own, plain, rtol=1e-3, atol=1e-6)
    model.unload()


def test_the_reference_is_the_model_before_the_training(base_model: Any, pairs: list[TokenSequence]) -> None:
    with torch.no_grad():
        expected = [(logprob(base_model, row).item(), logprob(base_model, row.rejected).item()) for row in pairs]  # type: ignore[arg-type]
    model = lora(base_model, RECIPE)
    values = reference_logprobs(model, pairs, RECIPE, before_batch=lambda: None)
    assert values == [pytest.approx(each, rel=1e-4) for each in expected]
    model.unload()


def test_a_training_starts_at_log_2_and_learns_to_prefer(base_model: Any, pairs: list[TokenSequence]) -> None:
    model = lora(base_model, RECIPE)
    events: list[TrainingProgress] = []
    training = train(model, pairs[:-2], RECIPE, held_out=pairs[-2:], on_progress=events.append)
    assert training.losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert training.losses[-1] < 0.1
    assert events[-1].accuracy == 1.0
    assert training.evaluations[-1].tokens == 2, "it is a mean over pairs"
    assert training.evaluations[-1].accuracy == 1.0
    model.unload()


def test_a_resumed_training_keeps_its_reference(base_model: Any, pairs: list[TokenSequence], tmp_path: Path) -> None:
    def losses(directory: Path | None, die_at: int | None = None) -> tuple[float, ...]:
        model = lora(base_model, RECIPE)

        def on_progress(now: TrainingProgress) -> None:
            if now.step == die_at:
                raise KeyboardInterrupt

        checkpoints = None if directory is None else Checkpoints(directory, key="k", every_s=1e9)
        try:
            return train(model, pairs, RECIPE, checkpoints=checkpoints, on_progress=on_progress).losses
        finally:
            model.unload()

    whole = losses(None)
    with pytest.raises(KeyboardInterrupt):
        losses(tmp_path, die_at=5)
    assert losses(tmp_path) == whole


def test_pairs_go_through_the_data_check_the_split_and_the_questions() -> None:
    prepared = inspect(Source("f", content(24)), None, renderer(), DataRules(pairs=True))
    assert not prepared.report.refused, prepared.report.findings
    assert prepared.report.format == "preference"
    assert (len(prepared.sequences), len(prepared.held_out)) == (14, 10)
    assert all(row.rejected is not None for row in (*prepared.sequences, *prepared.held_out_sequences))
    (first, *_) = questions(prepared.held_out)
    assert first.reference.startswith("Aye")
    assert (first.rejected or "").startswith("No idea")
    assert prepared.report.lengths is not None
    assert prepared.report.lengths.total == sum(row.size for row in prepared.sequences)


def test_each_method_refuses_the_other_ones_format() -> None:
    chat = b"\n".join(
        json.dumps({"prompt": f"question {at}", "completion": f"answer {at}"}).encode() for at in range(12)
    )
    with pytest.raises(DataInvalid, match=r"`method\.type: dpo` needs pairs"):
        inspect(Source("f", chat), None, renderer(), DataRules(pairs=True))
    with pytest.raises(DataInvalid, match=r"which only `method\.type: dpo` trains on"):
        inspect(Source("f", content(12)), None, renderer(), DataRules(pairs=False))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"non_preferred_output": None}, "non_preferred_output must be a list of one assistant message"),
        ({"preferred_output": []}, "preferred_output must be a list of one assistant message"),
        ({"preferred_output": [{"role": "user", "content": "x"}]}, "preferred_output[0].role is user"),
        ({"non_preferred_output": pair(1)["preferred_output"]}, "are the same, so there is nothing to prefer"),
        ({"input": "hi"}, "input must be an object with `messages`"),
        ({"input": {"messages": pair(1)["preferred_output"]}}, "the last message of input has role assistant"),
        ({"preferred_output": [{"role": "assistant", "content": "x", "weight": 0}]}, "preferred_output[0].weight is 0"),
        ({"input": {"mesages": []}}, "did you mean `messages`?"),
    ],
)
def test_a_bad_pair_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        read_dataset("f", json.dumps(pair(1) | changes).encode())
    assert reason in caught.value.problems[0].reason


def test_earlier_answers_of_the_input_are_not_trained_on() -> None:
    row = pair(1)
    row["input"]["messages"] += [{"role": "assistant", "content": "Which?"}, {"role": "user", "content": "That one."}]
    (example,) = read_dataset("f", json.dumps(row).encode())[1].examples
    assert [message.trained for message in example.messages] == [False, False, False, True]
    with pytest.raises(DataInvalid):
        parse_chat(json.dumps(row).encode())
