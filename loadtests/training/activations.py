"""The tensors that a training step holds in random models of several architectures, beside their estimate.

    .venv/bin/python -m loadtests.training.activations    # a minute on a CPU

Each row is one micro-batch of the trainer's own code, forward and backward, on a model of four layers with the ratio of
MLP to hidden size of a published one. Counted is every tensor's storage from its creation to its end, once, without
parameters and their gradients: what an operation takes inside and gives back does not count, nor does the allocator.
"bytes" are those that a layer has saved for the backward pass, for each token and hidden unit (of six layers against
four). The estimate is `trainer.tune.memory`'s for the same micro-batch.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.data.render import TokenSequence
from trainer.tune.memory import activation_bytes, layer_bytes, read_shape
from trainer.tune.model import attach_lora
from trainer.tune.objectives import Objective, make_objective
from trainer.tune.recipe import Recipe

ROWS: Final = 2
LENGTH: Final = 256
TOKENS: Final = ROWS * LENGTH
LAYERS: Final = 4
HIDDEN: Final = 512
EXPERTS: Final = {"num_experts_per_tok": 2, "num_local_experts": 4}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the way in which it is trained."""

    kind: str
    ratio: float
    like: str
    changes: Mapping[str, Any]
    update: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    layers: int = LAYERS

    @property
    def recipe(self) -> Recipe:
        """One step in one micro-batch."""
        return Recipe(rank=8, batch_size=ROWS, micro_batch_tokens=TOKENS).model_copy(update=dict(self.update))

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return AutoConfig.for_model(
            self.kind,
            vocab_size=1024,
            hidden_size=HIDDEN,
            intermediate_size=round(HIDDEN * self.ratio / 8) * 8,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            pad_token_id=0,
            eos_token_id=2,
            **self.changes,
        )


BASES: Final[tuple[tuple[str, float, str, Mapping[str, Any]], ...]] = (
    ("llama", 2.67, "SmolLM2 135M", {}),
    ("llama", 3.5, "Llama 3.1 8B", {}),
    ("qwen2", 5.4, "Qwen2.5 32B", {}),
    ("qwen3", 3.0, "Qwen3 0.6B", {"head_dim": 128}),
    ("gemma3_text", 6.0, "Gemma 3 1B", {"head_dim": 64}),
    ("mistral", 3.5, "Mistral 7B", {"sliding_window": 128}),
    ("phi3", 2.67, "Phi-3 mini", {}),
    ("granite", 4.0, "Granite 3 2B", {}),
    ("mixtral", 3.5, "Mixtral 8x7B", EXPERTS),
)
VARIANTS: Final[tuple[tuple[str, Mapping[str, Any], torch.dtype], ...]] = (
    ("", {}, torch.bfloat16),
    ("checkpointing", {"gradient_checkpointing": True}, torch.bfloat16),
    ("dropout", {"dropout": 0.1}, torch.bfloat16),
    ("float32", {}, torch.float32),
)


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations create inside the block, while they live; `peak` is the most."""

    def __init__(self, ignored: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ignored = ignored
        self._sizes: dict[int, int] = {}
        self._now: int = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key: int = storage._cdata
        if key not in self._ignored and key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def main() -> None:
    """Print the Markdown table; exit code 1 if an estimate is below what was counted."""
    torch.set_num_threads(1)
    low = False
    print(
        "| architecture | MLP / hidden | as in | with | bytes | estimated | peak MB | estimate MB | estimate / peak |"
    )
    print("|---|---:|---|---|---:|---:|---:|---:|---:|")
    for name, case in cases():
        saved, deeper = saved_bytes(case), saved_bytes(replace(case, layers=LAYERS + 2))
        per_layer = (deeper - saved) / 2
        bound, estimated = estimates(case)
        peak = peak_bytes(case)
        unit = TOKENS * HIDDEN
        kept = ("", "") if case.recipe.gradient_checkpointing else (f"{per_layer / unit:.1f}", f"{bound / unit:.1f}")
        low |= estimated < peak or (kept[0] != "" and bound < per_layer)
        print(
            f"| {case.kind} | {case.ratio} | {case.like} | {name} | {kept[0]} | {kept[1]} "
            f"| {peak / 1e6:.1f} | {estimated / 1e6:.1f} | {estimated / peak:.2f} |",
            flush=True,
        )
    raise SystemExit(low)


def cases() -> Iterator[tuple[str, Case]]:
    """Every base as it is, and the first three with everything that changes the arithmetic."""
    for number, (kind, ratio, like, changes) in enumerate(BASES):
        for name, update, dtype in VARIANTS if number < 3 else VARIANTS[:2]:
            yield name, Case(kind, ratio, like, changes, update, dtype)


def estimates(case: Case) -> tuple[int, int]:
    """Bytes of one layer, and of all activations."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(case.config, dtype=torch.bfloat16).save_pretrained(folder)
        shape = read_shape(Path(folder))
    numbers: dict[str, Any] = {"tokens": TOKENS, "fused": True, "number_bytes": case.dtype.itemsize}
    return layer_bytes(shape, case.recipe, **numbers), activation_bytes(shape, case.recipe, **numbers)


def prepared(case: Case) -> tuple[Any, Objective, list[TokenSequence]]:
    """The model with its LoRA, the objective, and the examples of one micro-batch."""
    model: Any = AutoModelForCausalLM.from_config(case.config, dtype=case.dtype, attn_implementation="sdpa")
    model = attach_lora(model, case.recipe)
    flags = (False, *(True,) * (LENGTH - 1))
    rows = [TokenSequence(tuple((at * 31 + row) % 1000 for at in range(LENGTH)), flags, row) for row in range(ROWS)]
    return model, make_objective(model, case.recipe, training=True), rows


def own_storages(model: Any) -> frozenset[int]:
    """The storages of parameters and buffers."""
    return frozenset(tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers()))


def saved_bytes(case: Case) -> int:
    """Bytes that autograd saves for the backward pass of a micro-batch, each storage once, without parameters."""
    model, objective, rows = prepared(case)
    own = own_storages(model)
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.loss(rows, count=TOKENS)
    return sum(int(storage.nbytes()) for storage in saved.values())


def peak_bytes(case: Case) -> int:
    """The most that a micro-batch's forward and backward pass hold at one moment, without the parameters' gradients."""
    model, objective, rows = prepared(case)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    live = LiveTensors(own_storages(model))
    with live:
        loss, _ = objective.loss(rows, count=TOKENS)
        loss.backward()  # type: ignore[no-untyped-call]
    return live.peak


if __name__ == "__main__":
    main()
