"""Everything that can be wrong with an adapter, as one tree: a class for each reason, a code for each class.

AdapterError
├── NamingError (NameInvalid, NameReserved, ReferenceInvalid, SourceInvalid)
├── ConfigError (ConfigInvalid, UnknownConfigKey, RankTooLarge, PatternUnsupported, BaseMismatch)
│   └── UnsupportedFeature (DoraUnsupported, BiasUnsupported, ...)
├── WeightsError (WeightsInvalid, PickleRefused, DtypeUnsupported, TensorNameInvalid, ModuleUnknown,
│       ModuleUnsupported, ShapeMismatch, ...)
├── ProofError (ProofInvalid, ProbeTokensDiffer, LogprobsNotFinite, NoEffect, NotApplied, DivergesFromReference)
├── StoreError (TooLarge, DiskFull, NotInStore, Damaged)
└── BaseInvalid

`code` is stable and is what programs look at; `message` is for people and may change.
"""

from collections.abc import Mapping
from typing import ClassVar


class AdapterError(Exception):
    """The root. `param` names the field, config key or tensor that is wrong; `details` holds plain JSON values."""

    code: ClassVar[str] = "adapter_error"

    def __init__(self, message: str, *, param: str | None = None, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details: dict[str, object] = dict(details or {})


# Names


class NamingError(AdapterError):
    """A name, version or alias is not valid."""

    code = "naming_error"


class NameInvalid(NamingError):
    """Not a valid adapter name or alias."""

    code = "name_invalid"


class NameReserved(NamingError):
    """A name by the grammar that an adapter may not take: the base's name, or one that reads as a digest."""

    code = "name_reserved"


class ReferenceInvalid(NamingError):
    """Not `name`, `name@version` or `name:alias`."""

    code = "reference_invalid"


class SourceInvalid(NamingError):
    """Not the address of a folder in a hub, a bucket or on a web server."""

    code = "source_invalid"


# The config (adapter_config.json)


class ConfigError(AdapterError):
    """adapter_config.json cannot be served."""

    code = "config_error"


class ConfigInvalid(ConfigError):
    """Not JSON, not an object, a required key is missing, or a value has the wrong type or range."""

    code = "config_invalid"


class UnknownConfigKey(ConfigError):
    """A key that nobody here knows carries a value: it might change what the adapter means."""

    code = "config_key_unknown"


class RankTooLarge(ConfigError):
    """The rank, or one in `rank_pattern`, exceeds the engine's maximum."""

    code = "rank_too_large"


class PatternUnsupported(ConfigError):
    """A key of `rank_pattern` or `alpha_pattern` is a regular expression that could take too long to match."""

    code = "pattern_unsupported"


class BaseMismatch(ConfigError):
    """The config names another base model or a revision, and the operator demands that it names this one."""

    code = "base_mismatch"


class UnsupportedFeature(ConfigError):
    """A PEFT feature that changes what the adapter computes and that the engine does not implement."""

    code = "unsupported_feature"


class PeftTypeUnsupported(UnsupportedFeature):
    """Not a LoRA adapter (`peft_type`)."""

    code = "peft_type_unsupported"


class TaskTypeUnsupported(UnsupportedFeature):
    """An adapter for classification, question answering or an encoder-decoder model."""

    code = "task_type_unsupported"


class DoraUnsupported(UnsupportedFeature):
    """Weight-decomposed LoRA (arXiv:2402.09353): its magnitude vectors would be dropped."""

    code = "dora_unsupported"


class BiasUnsupported(UnsupportedFeature):
    """`bias` other than "none": trained biases would be dropped."""

    code = "bias_unsupported"


class LoraBiasUnsupported(UnsupportedFeature):
    """`lora_bias`: the bias of B would be dropped."""

    code = "lora_bias_unsupported"


class ModulesToSaveUnsupported(UnsupportedFeature):
    """`modules_to_save`: fully trained modules would be dropped."""

    code = "modules_to_save_unsupported"


class TrainableTokensUnsupported(UnsupportedFeature):
    """`trainable_token_indices`: trained token embeddings would be dropped."""

    code = "trainable_tokens_unsupported"


class LayerReplicationUnsupported(UnsupportedFeature):
    """`layer_replication`: more layers than the served model has."""

    code = "layer_replication_unsupported"


class AloraUnsupported(UnsupportedFeature):
    """Activated LoRA (arXiv:2504.12397): would be applied to every token instead of those after the invocation."""

    code = "alora_unsupported"


class BdloraUnsupported(UnsupportedFeature):
    """Block-diagonal LoRA."""

    code = "bdlora_unsupported"


class QaloraUnsupported(UnsupportedFeature):
    """Quantization-aware LoRA (arXiv:2309.14717): its inputs are pooled."""

    code = "qalora_unsupported"


class InitUnsupported(UnsupportedFeature):
    """`init_lora_weights` names a start that moved part of the base's weights into the adapter."""

    code = "init_lora_weights_unsupported"


class TargetParametersUnsupported(UnsupportedFeature):
    """`target_parameters`: LoRA on bare parameters (fused experts)."""

    code = "target_parameters_unsupported"


class FanInFanOutUnsupported(UnsupportedFeature):
    """`fan_in_fan_out`: base weights stored as [in, out] (GPT-2's Conv1D)."""

    code = "fan_in_fan_out_unsupported"


class MegatronUnsupported(UnsupportedFeature):
    """`megatron_config`: parallel layers of Megatron."""

    code = "megatron_unsupported"


class VariantUnsupported(UnsupportedFeature):
    """A LoRA variant with further tensors or another forward pass (Arrow, KaSA, Monteclora)."""

    code = "lora_variant_unsupported"


# The weights (adapter_model.safetensors)


class WeightsError(AdapterError):
    """adapter_model.safetensors cannot be served on this base."""

    code = "weights_error"


class WeightsInvalid(WeightsError):
    """Truncated, not safetensors, or a header that contradicts the file."""

    code = "weights_invalid"


class PickleRefused(WeightsError):
    """A pickle or an archive; it is rejected without being opened."""

    code = "pickle_refused"


class DtypeUnsupported(WeightsError):
    """A tensor that is not F32, F16 or BF16."""

    code = "dtype_unsupported"


class WeightsEmpty(WeightsError):
    """There is no LoRA tensor in the file: the engine would serve the plain base."""

    code = "weights_empty"


class TensorNameInvalid(WeightsError):
    """Not `base_model.model.<module>.lora_A.weight` or `.lora_B.weight`."""

    code = "tensor_name_invalid"


class PairIncomplete(WeightsError):
    """A module has an A without its B, or a B without its A."""

    code = "pair_incomplete"


class EmbeddingUnsupported(WeightsError):
    """LoRA on (or a copy of) the input or output embedding, or resized embeddings."""

    code = "embedding_unsupported"


class ModuleUnknown(WeightsError):
    """The base model has no such linear layer."""

    code = "module_unknown"


class ModuleUnsupported(WeightsError):
    """The base model has such a layer, but the engine applies no LoRA to it."""

    code = "module_unsupported"


class ShapeMismatch(WeightsError):
    """A tensor's shape does not follow from the base's layer and the config's rank."""

    code = "shape_mismatch"


class TargetModulesMismatch(WeightsError):
    """No tensor belongs to any of the config's `target_modules`: the two files are not one adapter."""

    code = "target_modules_mismatch"


class NotFinite(WeightsError):
    """NaN, infinity, or a value that becomes infinite in the engine's dtype."""

    code = "weights_not_finite"


class UpdateTooLarge(WeightsError):
    """An update that dwarfs the base weight it is added to: activations would overflow."""

    code = "update_too_large"


# The proof


class ProofError(AdapterError):
    """The engine does not show what the adapter should do."""

    code = "proof_error"


class ProofInvalid(ProofError):
    """`metadata.proof` does not follow the schema, or was made with other probes."""

    code = "proof_invalid"


class ProbeTokensDiffer(ProofError):
    """The two sides cut the probe texts into different tokens: another tokenizer."""

    code = "probe_tokens_differ"


class LogprobsNotFinite(ProofError):
    """A log-probability is missing, NaN or infinite."""

    code = "logprobs_not_finite"


class NoEffect(ProofError):
    """B·A is zero in every module."""

    code = "no_effect"


class NotApplied(ProofError):
    """B·A is not zero, but the engine answers as the base does."""

    code = "not_applied"


class DivergesFromReference(ProofError):
    """The adapter's effect in the engine is not the one that its trainer measured."""

    code = "diverges_from_reference"


class PerplexityTooHigh(ProofError):
    """Under the adapter plain text is so improbable that it is no longer a language model."""

    code = "perplexity_too_high"


class MixedBatchDiffers(ProofError):
    """In one batch with other models the adapter, or one of these, answers unlike itself alone."""

    code = "mixed_batch_differs"


class PromptRefused(ProofError):
    """The base's chat template cannot render the version's system prompt and examples."""

    code = "prompt_refused"


class PromptTooLong(ProofError):
    """With the version's system prompt and examples, the context has too little room for a question and an answer."""

    code = "prompt_too_long"


# The store


class StoreError(AdapterError):
    """The store could not write, read or find an adapter."""

    code = "store_error"


class TooLarge(StoreError):
    """More bytes than allowed."""

    code = "too_large"


class DiskFull(StoreError):
    """The file system has no room left (or the quota is spent)."""

    code = "disk_full"


class NotInStore(StoreError):
    """The store has no adapter with this digest."""

    code = "not_in_store"


class Damaged(StoreError):
    """Files of this digest are missing, of another size, or (when hashed again) of another content."""

    code = "damaged"


class BaseInvalid(AdapterError):
    """The base model's directory cannot be read as a checkpoint."""

    code = "base_invalid"
