"""Which keys of PEFT's LoraConfig can be served, by what they do to a trained adapter (read in PEFT 0.21, vLLM 0.32).

Three kinds of keys: read by the manifest; without effect once the adapter is trained; and features, which are refused
by name when they are on. A key without a value (null, false, empty) is off, whatever its name.
"""

from collections.abc import Mapping
from typing import Any, Final

from adapters import errors
from adapters.errors import UnknownConfigKey, UnsupportedFeature

UNDERSTOOD: Final = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "bias",
        "init_lora_weights",
        "base_model_name_or_path",
        "revision",
    }
)
"""Read by the manifest, or checked by value below."""

IGNORED: Final[Mapping[str, str]] = {
    "peft_version": "who wrote the file",
    "auto_mapping": "which Python class the base was",
    "inference_mode": "whether parameters are frozen when PEFT loads it",
    "lora_dropout": "training only",
    "exclude_modules": "chose modules for training; the tensors in the file are what came of it",
    "layers_to_transform": "chose layers for training; the tensors in the file are what came of it",
    "layers_pattern": "belongs to layers_to_transform",
    "runtime_config": "where PEFT keeps tensors while it loads",
    "megatron_core": "belongs to megatron_config",
    "qalora_group_size": "belongs to use_qalora",
    "loftq_config": "belongs to init_lora_weights='loftq'",
    "corda_config": "belongs to init_lora_weights='corda'",
    "lora_ga_config": "belongs to init_lora_weights='lora_ga'",
    "eva_config": "how A was initialised; what EVA made of ranks and alphas stands in the patterns",
    "velora_config": "another backward pass; the forward pass is that of LoRA",
    "ensure_weight_tying": "says how embeddings are trained, and LoRA on embeddings is refused by its tensors",
}
"""Accepted with any value, for the given reason."""

FEATURES: Final[Mapping[str, tuple[type[UnsupportedFeature], str]]] = {
    "use_dora": (errors.DoraUnsupported, "DoRA (weight-decomposed LoRA)"),
    "lora_bias": (errors.LoraBiasUnsupported, "a bias in LoRA's B"),
    "modules_to_save": (errors.ModulesToSaveUnsupported, "fully trained modules (modules_to_save)"),
    "trainable_token_indices": (errors.TrainableTokensUnsupported, "trained token embeddings"),
    "layer_replication": (errors.LayerReplicationUnsupported, "replicated layers"),
    "alora_invocation_tokens": (errors.AloraUnsupported, "activated LoRA (aLoRA)"),
    "use_bdlora": (errors.BdloraUnsupported, "block-diagonal LoRA (BD-LoRA)"),
    "use_qalora": (errors.QaloraUnsupported, "quantization-aware LoRA (QA-LoRA)"),
    "target_parameters": (errors.TargetParametersUnsupported, "LoRA on bare parameters (target_parameters)"),
    "fan_in_fan_out": (errors.FanInFanOutUnsupported, "base weights stored as [in, out] (fan_in_fan_out)"),
    "megatron_config": (errors.MegatronUnsupported, "Megatron's parallel layers"),
    "arrow_config": (errors.VariantUnsupported, "Arrow's routing between adapters"),
    "kasa_config": (errors.VariantUnsupported, "KaSA, which truncates the base's weights"),
    "monteclora_config": (errors.VariantUnsupported, "Monteclora's sampled weights"),
}
"""Refused when on: each changes what the adapter computes, and the engine would refuse or ignore it."""

BASE_KEEPING_INITS: Final = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica"})
"""Values of init_lora_weights that only choose where training starts.

PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA also move the start's product out of the base's weights: such an adapter is
right only on that changed base. PEFT's `path_initial_model_for_weight_conversion` turns it into a plain one, and then
writes `init_lora_weights: true`. (vLLM lets LoRA-GA pass, and yet PEFT's `lora_ga_init` subtracts from the base.)
"""

TASK_TYPES: Final = ("CAUSAL_LM", "FEATURE_EXTRACTION")


def is_unset(value: object) -> bool:
    """Whether a value is null, false or empty. Zero is a value."""
    return value is None or value is False or (isinstance(value, str | list | dict) and len(value) == 0)


def refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Raise the error of the first unsupported feature (in the order above) that is on."""
    peft_type = config.get("peft_type")
    if not is_unset(peft_type) and peft_type != "LORA":
        raise errors.PeftTypeUnsupported(f"peft_type is {_shown(peft_type)}; only 'LORA' is served.", param="peft_type")
    for key, (error, what) in FEATURES.items():
        if not is_unset(config.get(key)):
            raise error(f"{key}: the engine does not implement {what}.", param=key)
    bias = config.get("bias")
    if not is_unset(bias) and bias != "none":
        raise errors.BiasUnsupported(
            f"bias is {_shown(bias)}; the engine does not serve trained biases, so it must be 'none'.", param="bias"
        )
    init = config.get("init_lora_weights")
    if not is_unset(init) and str(init).lower() not in BASE_KEEPING_INITS:
        raise errors.InitUnsupported(
            f"init_lora_weights {_shown(init)} changes the base's weights; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, which turns it into a plain LoRA.",
            param="init_lora_weights",
        )
    task_type = config.get("task_type")
    if not is_unset(task_type) and task_type not in TASK_TYPES:
        raise errors.TaskTypeUnsupported(
            f"task_type is {_shown(task_type)}; only {' and '.join(TASK_TYPES)} are served.", param="task_type"
        )


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """Raise UnknownConfigKey if an unknown key has a value."""
    unknown = sorted(
        key
        for key, value in config.items()
        if key not in UNDERSTOOD and key not in IGNORED and key not in FEATURES and not is_unset(value)
    )
    if unknown:
        listed = ", ".join(_shown(key) for key in unknown[:5]) + (" …" if len(unknown) > 5 else "")
        raise UnknownConfigKey(
            f"The config has unknown keys with a value: {listed}. Remove them if they do not change the adapter.",
            param=unknown[0][:128],
            details={"keys": [key[:128] for key in unknown[:50]]},
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
