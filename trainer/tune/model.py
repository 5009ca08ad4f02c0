"""Loads the base model, attaches a LoRA, and chooses the compute dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging

from adapters.baseshapes import EXPERT_NAMES, has_experts, obstacle
from adapters.chat_template import served_template
from adapters.errors import AdapterError
from trainer.errors import BaseModelIncomplete, NothingTrainable
from trainer.tune.memory import EAGER_MAX_TOKENS
from trainer.tune.recipe import ALL_LINEAR, Recipe


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the hardware supports it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.float32


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer with the chat template that the engine uses. Raises BaseModelIncomplete."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        template = served_template(base)
    except (OSError, ValueError, AdapterError) as error:
        raise BaseModelIncomplete(f"The tokenizer in {base} cannot be loaded: {error}") from error
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def load_generation_config(base: Path) -> Any:
    """The base's generation config, which has the tokens that end an answer; None if there is none."""
    if not (base / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(base, local_files_only=True)


def load_base(base: Path, *, dtype: torch.dtype, device: torch.device, longest: int, quantization: str = "none") -> Any:
    """The base model on `device`, computing in `dtype`, for sequences of up to `longest` tokens.

    Raises BaseModelIncomplete.
    """
    logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, attn_implementation=attention(device, longest), local_files_only=True, **options
        )
    except (OSError, ValueError) as error:
        raise BaseModelIncomplete(f"The model in {base} cannot be loaded: {error}") from error
    return model if options else model.to(device)


def attention(device: torch.device, longest: int) -> str:
    """transformers' `attn_implementation` for sequences of up to `longest` tokens."""
    return "eager" if device.type == "cpu" and longest <= EAGER_MAX_TOKENS else "sdpa"


def attach_lora(model: Any, recipe: Recipe) -> Any:
    """Put a fresh LoRA on every target module that the engine can adapt: A random, B zero, in the model's own dtype.

    The forward pass uses parameters in the dtype in which the engine applies them; the optimizer keeps float32 master
    weights. Mixed dtypes under autocast would spend a tenth of each step on casts.

    Raises NothingTrainable if the recipe's modules are not in the model.
    """
    targets = recipe.target_modules
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    excluded = [name for name in linear if obstacle(name) is not None]
    if targets == ALL_LINEAR and has_experts(name for name, _ in model.named_parameters()):
        # PEFT's own all-linear adds the experts, which the engine could not serve
        output = model.get_output_embeddings()
        own = {
            name.rpartition(".")[2]
            for name in linear
            if name not in excluded and model.get_submodule(name) is not output
        }
        targets = tuple(sorted(own - EXPERT_NAMES))
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=_plain(recipe.alpha),
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=excluded or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise NothingTrainable(f"No LoRA could be attached to {targets!r}: {error}") from error
    if adapted.peft_config["default"].target_parameters:
        raise NothingTrainable(f"{targets!r} means experts, which cannot be served.")
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad != ("lora_" in name):
            raise NothingTrainable(
                f"{name}: requires_grad is {parameter.requires_grad}, but only LoRA parameters must be trained."
            )
    if recipe.gradient_checkpointing:
        enable_checkpointing(adapted)
    adapted.train()
    return adapted


def enable_checkpointing(model: Any) -> None:
    """Let `model` (from attach_lora) recompute its activations in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def load_adapter(model: Any, directory: Path) -> None:
    """Load the weights of the adapter in `directory` into `model` (from attach_lora).

    Raises NothingTrainable if their shapes do not match.
    """
    weights = load_file(directory / "adapter_model.safetensors")
    try:
        result = set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        raise NothingTrainable(f"the parent's weights do not match the recipe: {error}") from error
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise NothingTrainable(
            f"the parent's weights do not match the recipe: {(missing or result.unexpected_keys)[0]}"
        )


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off inside the block.

    Four-bit layers stay in training mode: on a CPU, bitsandbytes packs their weights for inference on the first forward
    pass in evaluation mode, and from then on the gradients through them are silently wrong.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        if getattr(getattr(module, "weight", None), "quant_state", None) is None:
            module.training = False
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the adapter's parameters by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def set_adapter_weights(model: Any, weights: dict[str, torch.Tensor], device: torch.device) -> None:
    """Replace the adapter's parameters of `model` (from attach_lora, same recipe) by those from `adapter_weights`, in
    their dtype, on `device`."""
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    if own != weights.keys():
        raise NothingTrainable("the adapter's parameters are not those of this model")
    # assigned, not copied: on a streamed base PEFT leaves them on the meta device
    model.load_state_dict({name: weight.to(device) for name, weight in weights.items()}, strict=False, assign=True)


def _plain(value: float) -> int | float:
    """32 for 32.0, as PEFT writes an alpha."""
    return int(value) if value.is_integer() else value
