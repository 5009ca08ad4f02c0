"""A base whose weights are on the device one layer at a time, for the proof: the whole base never has to fit.

Each decoder layer, and each module outside of them (embeddings, last norm, output layer), reads its weights from the
checkpoint before its forward pass and drops them after it. The modules, their order and their arithmetic are
transformers' own, so the results are those of a base loaded as a whole. One pass over a text reads the checkpoint once.

Not run on a GPU yet. On a CPU the log-probabilities equal those of a whole base to the bit, which the tests check.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.basefiles import weight_files
from adapters.errors import AdapterError
from trainer.errors import BaseModelIncomplete


def stream_base(base: Path, *, dtype: torch.dtype, device: torch.device, attention: str) -> Any:
    """The base model, computing in `dtype` on `device`, for inference. Its parameters are on the `meta` device except
    during the forward pass of their layer.

    `attention` is transformers' `attn_implementation`. Raises BaseModelIncomplete if the checkpoint does not have every
    parameter under the model's own name.
    """
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        tensors = _Tensors(base, dtype, device)
    except (OSError, ValueError, AdapterError) as error:
        raise BaseModelIncomplete(f"The model in {base} cannot be loaded: {error}") from error
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    tied = _tied_names(model)
    for prefix, block in _blocks(model):
        _Block(prefix, block, tensors, tied)
    return model.eval()


def _blocks(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are loaded as a whole, with their names: decoder layers, and others with own parameters."""
    layers = set(model.get_decoder().layers)
    inside = {part for layer in layers for part in layer.modules()}
    for name, module in model.named_modules():
        if module in layers or (module not in inside and any(True for _ in module.parameters(recurse=False))):
            yield name, module


def _tied_names(model: Any) -> dict[str, str]:
    """The output layer's weight is the input embeddings' if the config says so; the checkpoint may have it once."""
    names = {module: name for name, module in model.named_modules()}
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.tie_word_embeddings or output is None:
        return {}
    return {f"{names[output]}.weight": f"{names[embeddings]}.weight"}


class _Tensors:
    """Reads tensors of a checkpoint to `device`, in `dtype`."""

    def __init__(self, base: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._paths: dict[str, Path] = {}
        for path in weight_files(base):
            with safe_open(path, framework="pt") as file:
                self._paths |= dict.fromkeys(file.keys(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def read(self, names: list[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names."""
        by_path: defaultdict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_path[self._paths[name]].append(name)
        tensors: dict[str, torch.Tensor] = {}
        for path, inside in by_path.items():
            with safe_open(path, framework="pt", device=str(self._device)) as file:
                tensors |= {name: file.get_tensor(name).to(self._dtype) for name in inside}
        return tensors


class _Block:
    """Hooks that load a module's parameters before its forward pass and drop them after it.

    Parameters are found by their module, not by its name, so that a LoRA may be put around it later.
    """

    def __init__(self, prefix: str, block: nn.Module, tensors: _Tensors, tied: dict[str, str]) -> None:
        self._tensors = tensors
        self._slots: list[tuple[nn.Module, str, str]] = []
        for path, module in block.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                full = ".".join(part for part in (prefix, path, name) if part)
                key = full if full in tensors else tied.get(full, full)
                if key not in tensors:
                    raise BaseModelIncomplete(f"The checkpoint has no tensor named {full}.")
                self._slots.append((module, name, key))
        self._empty = [module.get_parameter(name) for module, name, _ in self._slots]
        block.register_forward_pre_hook(self._load)
        block.register_forward_hook(self._drop)

    def _load(self, *_arguments: Any) -> None:
        tensors = self._tensors.read([key for _, _, key in self._slots])
        for module, name, key in self._slots:
            setattr(module, name, nn.Parameter(tensors[key], requires_grad=False))

    def _drop(self, *_arguments: Any) -> None:
        for (module, name, _), empty in zip(self._slots, self._empty, strict=True):
            setattr(module, name, empty)
